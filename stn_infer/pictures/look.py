"""What ``show`` draws for one input: the image, each sampler's mesh and warped output, and the prediction."""

from __future__ import annotations

from dataclasses import dataclass

from stn_infer.arrays import Array
from stn_infer.predictions import Candidate
from stn_infer.preprocess.rule import Preprocess


@dataclass(frozen=True)
class WarpView:
    """One sampler on one sample.

    Attributes:
        source: the sampler's input, [C, H, W], or a volume [C, D, H, W].
        points: sampling positions in pixels of ``source``, [Ho, Wo, 2], (x, y), or [Do, Ho, Wo, 3], (x, y, z); (0, 0)
            is the first pixel's center.
        warped: the sampler's output, [C, Ho, Wo] or [C, Do, Ho, Wo].
        straight: whether ``points`` are an affine map of the output's pixels, so that their outline is sufficient.
        w: the denominators of ``points``, [Ho, Wo] or [Do, Ho, Wo]; where its sign changes, a line through the points
            goes to infinity and comes back from the other side. None: the points are no quotients.
        tensor: the name of ``source``; samplers of one tensor share its picture.
        rule: how the values of ``source`` were made from pixels; None: they are no picture.
    """

    source: Array
    points: Array
    warped: Array
    straight: bool
    w: Array | None = None
    tensor: str = ""
    rule: Preprocess | None = None


@dataclass(frozen=True)
class Look:
    """One sample.

    Attributes:
        name: its file, without folders.
        prediction: the label or index of the largest value of the first output, or the text that the model reads;
            empty if there is neither.
        warps: one per spatial transformer or ``stn::Sampler``, in graph order.
        candidates: the classes that are shown, best first; empty if there are none.
        assumed_scores: whether nothing says that their confidences are those of a softmax.
        truth: the label that was given with the sample; None: there is none.
        error: why it cannot be read; then there are no ``warps``.
    """

    name: str
    prediction: str
    warps: tuple[WarpView, ...]
    candidates: tuple[Candidate, ...] = ()
    assumed_scores: bool = False
    truth: str | None = None
    error: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """The classes with their confidences, such as ``seven 98%``."""
        return tuple(each.describe() for each in self.candidates)

    @property
    def is_right(self) -> bool | None:
        """Whether the prediction is the truth; None where either is unknown."""
        return None if self.truth is None or not self.prediction else self.prediction == self.truth
