"""ST-FCN and ST-CNN: a spatial transformer at the input of a classifier (Jaderberg et al. 2015, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stn_infer.layers import SpatialTransformer
from stn_infer.models.baselines import cnn, fcn
from stn_infer.models.localization import cnn_localization
from stn_infer.samplers import Mode, PaddingMode
from stn_infer.transforms import Transformation


class SpatialClassifier(nn.Module):
    """``classifier(transformer(input))``: logits [N, classes] from images [N, C, H, W]."""

    def __init__(self, transformer: SpatialTransformer, classifier: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.classifier = classifier

    def forward(self, input: Tensor) -> Tensor:
        """Logits [N, classes]."""
        return self.classifier(self.transformer(input))  # type: ignore[no-any-return]


def st_fcn(
    transformation: Transformation,
    input_shape: Sequence[int] = (1, 28, 28),
    output_size: Sequence[int] | None = None,
    classes: int = 10,
    hidden: int = 128,
    localization_hidden: int = 32,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode | None = None,
    align_corners: bool | None = None,
    grid_align_corners: bool | None = None,
    convention: str | None = None,
) -> SpatialClassifier:
    """A transformer with a localization network of three fully connected layers, before an :func:`fcn`.

    Args:
        transformation: the family of grids.
        input_shape: (C, H, W).
        output_size: (H, W) of the classifier's input; None: the transformer's input size.
        classes: the number of logits.
        hidden: width of the classifier's two hidden layers.
        localization_hidden: width of the localization network's two hidden layers.
        mode, padding_mode, align_corners, grid_align_corners, convention: the sampler's and the grid's, see
            :class:`SpatialTransformer`.
    """
    localization = fcn(input_shape, transformation.num_parameters, localization_hidden)
    sampler = (mode, padding_mode, align_corners, grid_align_corners)
    seen, transformer = _transformer(localization, transformation, input_shape, output_size, sampler, convention)
    return SpatialClassifier(transformer, fcn(seen, classes, hidden))


def st_cnn(
    transformation: Transformation,
    input_shape: Sequence[int] = (1, 28, 28),
    output_size: Sequence[int] | None = None,
    classes: int = 10,
    filters: int = 32,
    localization_filters: int = 20,
    mode: Mode = "bilinear",
    padding_mode: PaddingMode | None = None,
    align_corners: bool | None = None,
    grid_align_corners: bool | None = None,
    convention: str | None = None,
) -> SpatialClassifier:
    """A transformer with a small convolutional localization network at half resolution, before a :func:`cnn`.

    Args:
        transformation: the family of grids.
        input_shape: (C, H, W); H and W at least 28.
        output_size: (H, W) of the classifier's input; None: the transformer's input size.
        classes: the number of logits.
        filters: filters of the classifier's first convolution; the second has twice as many.
        localization_filters: filters of both convolutions of the localization network, and width of its hidden layer.
        mode, padding_mode, align_corners, grid_align_corners, convention: the sampler's and the grid's, see
            :class:`SpatialTransformer`.

    Raises:
        UsageError: an input or output size too small for the convolutions.
    """
    count = localization_filters
    localization = cnn_localization("st-cnn", input_shape, transformation.num_parameters, count, count)
    sampler = (mode, padding_mode, align_corners, grid_align_corners)
    seen, transformer = _transformer(localization, transformation, input_shape, output_size, sampler, convention)
    return SpatialClassifier(transformer, cnn(seen, classes, filters))


def _transformer(
    localization: nn.Module,
    transformation: Transformation,
    input_shape: Sequence[int],
    output_size: Sequence[int] | None,
    sampler: tuple[Mode, PaddingMode | None, bool | None, bool | None],
    convention: str | None,
) -> tuple[tuple[int, ...], SpatialTransformer]:
    """The shape (C, H, W) of the classifier's input, and the transformer before it."""
    channels, *size = input_shape
    output_size = tuple(output_size or size)
    transformer = SpatialTransformer(
        localization, transformation, output_size, *sampler, convention=convention, input_size=size
    )
    return (channels, *output_size), transformer
