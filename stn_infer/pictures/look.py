"""What ``show`` draws for one input: the image, each sampler's mesh and warped output, and the prediction."""

from __future__ import annotations

from dataclasses import dataclass

from stn_infer.arrays import Array
from stn_infer.predictions import Candidate


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
        candidates: the classes that are shown, best first; empty if there are none.
        assumed_scores: whether nothing says that their confidences are those of a softmax.
        warps: one per spatial transformer or ``stn::Sampler``, in graph order.
    """

    name: str
    prediction: str
    warps: tuple[WarpView, ...]
    candidates: tuple[Candidate, ...] = ()
    assumed_scores: bool = False

    @property
    def captions(self) -> tuple[str, ...]:
        """The classes with their confidences, such as ``seven 98%``."""
        return tuple(each.describe() for each in self.candidates)
