"""A zoo of small models with samplers, each with the expected result of the pass.

PyTorch modules exported in several ways (``stn_styles.py``, ``zoo_torch.py``) and graphs built by hand
(``zoo_graphs.py``). ``load`` builds a model once per session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import onnx
import torch

from tests.support import stn_styles as styles
from tests.support import zoo_fields as fields
from tests.support import zoo_graphs as graphs
from tests.support import zoo_products as products
from tests.support import zoo_quotients as quotients
from tests.support import zoo_torch as nets
from tests.support.shared import made_once
from tests.support.zoo_graphs import Graph, affine_grid, spline
from tests.support.zoo_torch import dynamo, script


@dataclass(frozen=True)
class Fused:
    """A sampler that must be fused: kind, K, and values per sample at the cut (None: any)."""

    kind: str
    rows: int
    values: int | None = None
    precision: str = "float32"
    scope: str = ""


@dataclass(frozen=True)
class NotFused:
    """A sampler that must not be fused; ``reason`` is part of the finding's message."""

    reason: str


@dataclass(frozen=True)
class Animal:
    """One model.

    Attributes:
        name: a unique name.
        build: builds the model.
        expected: one entry per sampler, in graph order.
        batches: batch sizes at which outputs are compared.
        tolerance: limit on the outputs' error, relative to their scale.
        runs: whether onnxruntime can run the original.
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    expected: tuple[Fused | NotFused, ...]
    batches: tuple[int, ...] = (1, 3)
    tolerance: float = 1e-5
    runs: bool = True

    @property
    def linear(self) -> bool:
        """Whether one of its grids can be fused."""
        return any(isinstance(entry, Fused) for entry in self.expected)


@cache
def load(animal: Animal) -> onnx.ModelProto:
    """Returns the model; callers must not change it."""

    def build() -> bytes:
        torch.manual_seed(3)
        return animal.build().SerializeToString()

    return onnx.load_from_string(made_once(f"zoo {animal.name}", build))


AFFINE = Fused("affine", 3, 6)

ANIMALS = (
    # dynamo, several opsets
    Animal("dynamo 18: affine_grid", dynamo(styles.AffineGrid, 18), (AFFINE,)),
    Animal("dynamo 20: affine_grid", dynamo(styles.AffineGrid, 20), (AFFINE,)),
    Animal("dynamo 22: assigned theta", dynamo(styles.AssignedTheta, 22), (Fused("affine", 3, 3),)),
    Animal("dynamo 18: spline rectifier", dynamo(styles.RectifierTPS, 18), (Fused("basis", 6, 12),)),
    Animal("dynamo 20: volume", dynamo(styles.Volume, 20), (Fused("affine", 4, 12),)),
    Animal("dynamo 18: several outputs", dynamo(nets.SeveralOutputs, 18), (AFFINE,)),
    Animal("dynamo 18: composed", dynamo(nets.Composed, 18), (Fused("affine", 3),) * 3),
    Animal("dynamo 18: clamped grid", dynamo(styles.ClampedGrid, 18), (NotFused("Clip"),)),
    # the tracing exporter
    Animal("script 16: batched mesh", script(styles.BatchedMesh, 16), (AFFINE,)),
    Animal("script 16: sigmoid attention", script(styles.SigmoidAttention, 16), (Fused("affine", 3, 3),)),
    Animal("script 16: homography", script(styles.Homography, 16), (Fused("projective", 3, 8),)),
    Animal(
        "script 18: homography by reciprocal", script(styles.ReciprocalHomography, 18), (Fused("projective", 3, 8),)
    ),
    Animal("script 16: spline rectifier", script(styles.RectifierTPS, 16), (Fused("basis", 6, 12),)),
    Animal("script 20: affine_grid", script(styles.AffineGrid, 20), (AFFINE,)),
    Animal("script 20: assigned theta", script(styles.AssignedTheta, 20), (Fused("affine", 3, 3),)),
    Animal("script 20: rotation", script(styles.Rotation, 20), (Fused("affine", 3, 2),)),
    Animal("script 20: volume", script(styles.Volume, 20), (Fused("affine", 4, 12),)),
    Animal("script 20: three transformers", script(styles.TwoTransformers, 20), (AFFINE,) * 3),
    Animal("script 17: TensorFlow's mesh", script(nets.TensorFlowMesh, 17), (AFFINE,)),
    Animal("script 16: composed", script(nets.Composed, 16), (Fused("affine", 3),) * 3),
    Animal("script 16: warps", script(nets.SeveralWarps, 16), (Fused("affine", 3),)),
    Animal("script 20: theta as input", script(nets.ThetaInput, 20, styles.SHAPE, (2, 3)), (AFFINE,)),
    Animal("script 20: several outputs", script(nets.SeveralOutputs, 20), (AFFINE,)),
    Animal("script 16: double grid", script(nets.DoubleGrid, 16), (AFFINE,)),
    Animal(
        "script 16: half-precision grid", script(nets.HalfGrid, 16), (Fused("affine", 3, 6, "float16"),), tolerance=5e-2
    ),
    Animal("script 16: coarse flow", script(nets.CoarseFlow, 16), (Fused("basis", 6, 8),)),
    Animal("script 20: clamped theta", script(nets.ClampedTheta, 20), (AFFINE,)),
    Animal("script 16: two heads", script(nets.TwoHeads, 16), (Fused("affine", 3, 4),)),
    Animal("script 16: batch of one", script(styles.Homography, 16, batch=1), (Fused("projective", 3, 8),), (1,)),
    Animal("script 16: batch of four", script(styles.BatchedMesh, 16, batch=4), (AFFINE,), (4,)),
    Animal("script 20: batch of three", script(styles.AffineGrid, 20, batch=3), (AFFINE,), (3,)),
    # a coarse field, enlarged by operators on images
    Animal("dynamo 18: coarse grid", dynamo(nets.CoarseGrid, 18), (Fused("basis", 12, 24),)),
    Animal("script 16: smoothed grid", script(partial(nets.CoarseGrid, smooth=True), 16), (Fused("basis", 14, 24),)),
    Animal("script 17: bicubic grid", script(partial(nets.CoarseGrid, "bicubic"), 17), (Fused("basis", 14, 24),)),
    Animal("script 16: B-spline", script(nets.Deformation, 16), (Fused("basis", 27, 50),)),
    Animal("dynamo 20: mesh", dynamo(nets.Mesh, 20), (Fused("basis", 11, 18),)),
    Animal("script 16: mesh", script(nets.Mesh, 16), (Fused("basis", 11, 18),)),
    *(
        Animal(f"{mode} {how}", fields.resize(mode, how), (Fused("basis", rows, 24),))
        for mode, how, rows in (
            ("nearest", "asymmetric", 14),
            ("nearest", "half_pixel", 14),
            ("linear", "half_pixel_symmetric", 14),
            ("linear", "pytorch_half_pixel", 14),
            ("linear", "align_corners", 12),
            ("cubic", "half_pixel", 14),
            ("cubic", "asymmetric", 14),
        )
    ),
    Animal("resized to a shape", fields.SIZED_BY_SHAPE, (Fused("basis", 12, 24),)),
    Animal("resized by scales", fields.BY_SCALES, (Fused("basis", 14, 24),)),
    Animal("shrunk by averages", fields.SHRUNK, (Fused("basis", 14, 24),)),
    Animal("transposed convolution", fields.TRANSPOSED, (Fused("basis", 26, 24),)),
    Animal("transposed convolution across channels", fields.TRANSPOSED_FULL, (Fused("basis", 74, 36),)),
    Animal("smoothed", fields.SMOOTHED, (Fused("basis", 14, 24),)),
    Animal("dilated convolution", fields.DILATED, (Fused("basis", 50, 24),)),
    Animal("average pool", fields.POOLED, (Fused("basis", 14, 24),)),
    Animal("mean removed", fields.NO_MEAN, (Fused("basis", 13, 24),)),
    Animal("mean removed by a reduction", fields.NO_MEAN_BY_REDUCTION, (Fused("basis", 13, 24),)),
    Animal("depth to space, DCR", fields.shuffled("DCR"), (Fused("basis", 50, 24),)),
    Animal("depth to space, CRD", fields.shuffled("CRD"), (Fused("basis", 50, 24),)),
    Animal("space to depth", fields.UNSHUFFLED, (Fused("basis", 4, 4),)),
    Animal("read at constant points", fields.READ_AT_POINTS, (NotFused("no input"), Fused("basis", 14, 24))),
    Animal(
        "read at constant points, bicubic", fields.CUBIC_AT_POINTS, (NotFused("no input"), Fused("basis", 14, 24)), (1,)
    ),
    Animal("normalized field", fields.NORMALIZED, (Fused("basis", 14, 24),)),
    Animal("fancy index", fields.FANCY, (Fused("basis", 14, 24),)),
    Animal("fancy index per sample", fields.FANCY_PER_SAMPLE, (Fused("basis", 49, 24),)),
    Animal("gathered elements", fields.BY_ELEMENTS, (Fused("basis", 48, 24),)),
    Animal("compressed", fields.COMPRESSED, (Fused("basis", 10, 16),)),
    Animal("added rows", fields.ADDED_ROWS, (Fused("basis", 14, 24),)),
    # a clamp before the sampler
    *(
        Animal(f"clamp: {name}", build, (AFFINE if reason is None else NotFused(reason),))
        for name, build, reason in fields.CLAMPS
    ),
    Animal("script 20: clamped volume", script(nets.ClampedVolume, 20), (Fused("affine", 4, 12),)),
    # products of predicted values
    Animal("script 16: about a center", script(products.AboutCenter, 16), (Fused("affine", 3),)),
    Animal("script 16: key points", script(products.KeyPoints, 16), (Fused("affine", 3),)),
    Animal("script 20: point by point", script(products.PointByPoint, 20), (Fused("affine", 3, 12),)),
    Animal("script 16: lens", script(products.Lens, 16), (Fused("basis", 8, 3),)),
    Animal(
        "script 16: homography about a center", script(products.HomographyAboutCenter, 16), (Fused("projective", 3),)
    ),
    Animal("script 20: masked", script(products.Masked, 20), (NotFused("(Sigmoid)"),)),
    Animal("script 16: distance", script(products.Distance, 16), (NotFused("(Sqrt)"),)),
    Animal("script 20: other sample", script(products.OtherSample, 20), (Fused("affine", 3, 7),)),
    # hand-built
    Animal("AffineGrid", affine_grid(2), (AFFINE,)),
    Animal("AffineGrid 3-D", affine_grid(3), (Fused("affine", 4, 12),)),
    Animal("spline with the inverse inside", spline(True), (Fused("basis", 6, 12),)),
    Animal("spline with a padded solve", spline(False), (Fused("basis", 6, 12),)),
    Animal("opset 22", Graph(graphs.POINTS, opset=22), (AFFINE,)),
    Animal("unnamed batch", graphs.UNNAMED_BATCH, (AFFINE,)),
    Animal("matrix times theta", graphs.EINSUM, (AFFINE,)),
    Animal("one theta for all", graphs.ONE_THETA, (AFFINE,)),
    Animal("one theta without a batch", graphs.THETA_WITHOUT_BATCH, (AFFINE,)),
    Animal("frames share a theta", graphs.THETA_OF_FRAMES, (Fused("affine", 3),)),
    Animal("theta with a separate batch size", graphs.THETA_WITH_ITS_OWN_BATCH, (AFFINE,)),
    Animal("shared scale, own shift", graphs.SHARED_SCALE, (Fused("affine", 3, 3),)),
    Animal("dynamic height and width", graphs.OPEN_SIZE, (AFFINE,)),
    Animal("half precision throughout", graphs.HALF, (Fused("basis", 3, 6, "float16"),), runs=False),
    Animal("half theta, float image", graphs.HALF_THETA, (Fused("basis", 3, 6, "float16"),), tolerance=5e-2),
    Animal("sampler in both branches", graphs.BRANCHES, (AFFINE, AFFINE)),
    Animal("grid outside of the branches", graphs.GRID_BEFORE_BRANCHES, (AFFINE, AFFINE)),
    Animal("sampler in a loop", graphs.IN_LOOP, (AFFINE,)),
    Animal("sampler in a scan over samples", graphs.IN_SCAN, (AFFINE,)),
    Animal("sampler in a function", graphs.IN_FUNCTION, (AFFINE,)),
    Animal("grid from a function", graphs.GRID_IN_FUNCTION, (AFFINE,)),
    # quotients over any basis
    Animal("script 16: plane sweep", script(quotients.PlaneSweep, 16), (Fused("projective", 3),) * 3),
    Animal("script 16: voxels to a camera", script(quotients.VoxelsToCamera, 16), (Fused("projective", 4, 12),)),
    Animal("script 16: rational camera", script(quotients.RationalCamera, 16), (Fused("projective", 10, 30),)),
    Animal(
        "script 16: rational camera, two denominators",
        script(partial(quotients.RationalCamera, 2), 16),
        (NotFused("x and y are divided by different values"),),
    ),
    Animal("script 20: projective volume", script(quotients.ProjectiveVolume, 20), (Fused("projective", 4, 16),)),
    Animal(
        "dynamo 20: projective volume, clamped",
        dynamo(partial(quotients.ProjectiveVolume, 0.9), 20),
        (Fused("projective", 4, 16),),
    ),
    Animal("script 16: absolute depth", script(quotients.AbsoluteDepth, 16), (NotFused("Abs"),)),
    # not linear, or not in a transformation's parameters
    Animal("script 16: dense flow", script(styles.DenseFlow, 16), (NotFused("Conv"),)),
    Animal("script 20: bent grid", script(styles.BentGrid, 20), (NotFused("Tanh"),)),
    Animal("script 20: where", script(styles.ChosenGrid, 20), (NotFused("Where"),)),
    Animal("script 20: relu", script(nets.ReluGrid, 20), (NotFused("Relu"),)),
    Animal("script 16: product after the cut", script(styles.ProductAfterCut, 16), (Fused("basis", 4, 4),)),
    Animal("script 20: mixed samples", script(styles.MixedSamples, 20), (NotFused("samples of a batch"),)),
    Animal("script 20: sized by the batch", script(styles.BatchSized, 20), (NotFused("computed from the batch size"),)),
    Animal("script 20: learned grid", script(styles.LearnedGrid, 20), (NotFused("depends on no input"),)),
    Animal(
        "script 20: mixed samples, batch of three",
        script(styles.MixedSamples, 20, batch=3),
        (NotFused("do not all have the same map"),),
        (3,),
    ),
    Animal("size from data", fields.SIZE_FROM_DATA, (NotFused("(Resize): its size, scale or region"),), (1,)),
    Animal("scale from data", fields.SCALE_FROM_DATA, (NotFused("(Resize): its size, scale or region"),), (1,)),
    Animal("convolution over samples", fields.MIXED_BATCH, (NotFused("do not all have the same map"),), (3,)),
    Animal("average over samples", fields.BATCH_AS_LENGTH, (NotFused("(AveragePool): the samples"),)),
    Animal("max pool", fields.LARGEST, (NotFused("(MaxPool)"),)),
    Animal("predicted kernel", fields.PREDICTED_KERNEL, (NotFused("(ConvTranspose): its weights"),), (1,)),
    Animal(
        "read at predicted points",
        fields.READ_AT_PREDICTED,
        (Fused("basis", 12, 24), NotFused("(GridSample): it samples")),
    ),
    Animal("picked by data", fields.PICKED_BY_DATA, (NotFused("(GatherND): an index or shape depends"),)),
    Animal("multiplied rows", fields.MULTIPLIED_ROWS, (NotFused("(ScatterND): a scatter with"),)),
    Animal("flow as input", graphs.FLOW_INPUT, (NotFused("a dense field"),)),
    Animal("branch around the grid", graphs.GRID_BY_BRANCH, (NotFused("a branch or a loop"),)),
    Animal("clamp in a function", graphs.CLAMP_IN_FUNCTION, (NotFused("Clip"),)),
    Animal("grid of the image's size", graphs.GRID_OF_IMAGES_SIZE, (NotFused("dynamic input size"),)),
    Animal("rounded coordinates", graphs.ROUNDED, (NotFused("Round"),)),
    Animal("absolute values in a branch", graphs.ABSOLUTE_IN_BRANCH, (NotFused("Abs"), AFFINE)),
)

# These exercise the same code as their neighbors in the list, so `make test` leaves them to the slow tests.
SLOW = frozenset(
    {"dynamo 18: coarse grid", "dynamo 20: mesh", "script 17: bicubic grid", "script 16: smoothed grid"}
    | {"nearest half_pixel", "linear half_pixel_symmetric", "linear pytorch_half_pixel", "cubic asymmetric"}
    | {"resized by scales", "transposed convolution", "dilated convolution", "mean removed", "depth to space, CRD"}
    | {"fancy index", "gathered elements", "compressed", "average pool", "normalized field", "space to depth"}
    | {f"clamp: {name}" for name in ("clip, nearest", "clip, reflection", "clip twice", "clip to [-1, 10]", "relu")}
    | {f"clamp: {name}" for name in ("clip of one axis", "maximum only", "clip in [0, 1], flipped", "bounds from data")}
    | {"script 20: other sample", "script 16: distance", "script 16: lens", "scale from data", "multiplied rows"}
)
