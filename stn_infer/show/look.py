"""What ``show`` draws for one input: the image, each sampler's mesh and warped output, and the prediction."""

from __future__ import annotations

from dataclasses import dataclass

from stn_infer.arrays import Array


@dataclass(frozen=True)
class WarpView:
    """One sampler on one sample.

    Attributes:
        source: the sampler's input, [C, H, W], or a volume [C, D, H, W].
        points: sampling positions in pixels of ``source``, [Ho, Wo, 2], (x, y), or [Do, Ho, Wo, 3], (x, y, z); (0, 0)
            is the first pixel's center.
        warped: the sampler's output, [C, Ho, Wo] or [C, Do, Ho, Wo].
        straight: whether straight lines stay straight, so that the outline of ``points`` is sufficient.
    """

    source: Array
    points: Array
    warped: Array
    straight: bool


@dataclass(frozen=True)
class Look:
    """One sample.

    Attributes:
        name: its file, without folders.
        prediction: the label or index of the largest value of the first output; empty if that is not a vector.
        warps: one per spatial transformer or ``stn::Sampler``, in graph order.
    """

    name: str
    prediction: str
    warps: tuple[WarpView, ...]
