"""Photographs behind the house numbers: those that scikit-image's wheel contains and that anyone may use.

| file | by | terms |
|---|---|---|
| brick.png, gravel.png | CC0Textures | CC0 |
| grass.png | linolafett | CC0 |
| coffee.png | Rachel Michetti | CC0 |
| chelsea.png | Stefan van der Walt | CC0 |
| rocket.jpg | SpaceX | public domain |
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from export.datasets.pictures import open_picture
from stn_infer.errors import MissingDependencyError
from stn_infer.extras import install

FILES = ("brick.png", "gravel.png", "grass.png", "coffee.png", "chelsea.png", "rocket.jpg")


@lru_cache(maxsize=1)
def photographs() -> tuple[NDArray[np.uint8], ...]:
    """The photographs, each [H, W, 3] uint8 RGB; H and W are at least 300.

    Raises:
        MissingDependencyError: scikit-image is not installed.
        InputError: one of its files is missing or damaged.
    """
    try:
        import skimage
    except ImportError:
        raise MissingDependencyError(
            f"the photographs behind the house numbers are part of scikit-image; {install('train')}"
        ) from None
    folder = Path(skimage.__file__).parent / "data"
    return tuple(np.asarray(open_picture(folder / name)) for name in FILES)


def piece(size: int, generator: Generator) -> Tensor:
    """A random square piece [3, size, size] float32 of a random photograph, at every n-th pixel for a random n."""
    pictures = photographs()

    def whole(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    picture = pictures[whole(len(pictures))]
    step = 1 + whole(min(picture.shape[:2]) // size)
    side = size * step
    top, left = (whole(length - side + 1) for length in picture.shape[:2])
    part = picture[top : top + side : step, left : left + side : step]
    return torch.from_numpy(part.astype(np.float32)).permute(2, 0, 1)
