"""What ``show`` draws of one input: the image, each sampler's mesh and its warped output, the prediction."""

from __future__ import annotations

from dataclasses import dataclass

from stn_infer.arrays import Array


@dataclass(frozen=True)
class WarpView:
    """One spatial transformer on one sample.

    Attributes:
        source: what is sampled, [C, H, W].
        points: where, in pixels of ``source``, [Ho, Wo, 2] in (x, y) order; (0, 0) is the center of the first pixel.
        warped: what comes out, [C, Ho, Wo].
        straight: whether lines stay lines, so that the outline of ``points`` says all.
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
        prediction: the label or number of the largest value of the first output; empty where that is no vector.
        warps: one a spatial transformer, in graph order.
    """

    name: str
    prediction: str
    warps: tuple[WarpView, ...]
