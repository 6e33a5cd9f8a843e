"""Volumes (Jaderberg et al. 2015, appendix): a 3-D transformer, whose output is flattened and classified."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stn_infer.layers import SpatialTransformer
from stn_infer.models.baselines import cnn
from stn_infer.models.localization import cnn_localization
from stn_infer.transforms import Affine


class VolumeClassifier(nn.Module):
    """Logits [N, classes] from volumes [N, C, D, H, W]: warp, maximum along the depth, classify.

    Attributes:
        transformer: a :class:`SpatialTransformer` of rank 3, or an identity.
        classifier: of images [N, C, H, W].
    """

    def __init__(self, transformer: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.classifier = classifier

    def forward(self, input: Tensor) -> Tensor:
        """Logits [N, classes]."""
        return self.classifier(self.transformer(input).amax(dim=2))  # type: ignore[no-any-return]


def volume_cnn(input_shape: Sequence[int] = (1, 60, 60, 60), classes: int = 10, filters: int = 32) -> VolumeClassifier:
    """The baseline without a transformer; see :func:`st_volume`."""
    channels, _, *size = input_shape
    return VolumeClassifier(nn.Identity(), cnn((channels, *size), classes, filters))


def st_volume(
    input_shape: Sequence[int] = (1, 60, 60, 60),
    output_size: Sequence[int] | None = None,
    classes: int = 10,
    filters: int = 32,
    localization_filters: int = 20,
) -> VolumeClassifier:
    """A 3-D affine transformer (12 parameters, trilinear), before a :func:`cnn` on the flattened volume.

    Args:
        input_shape: (C, D, H, W), each size at least 28.
        output_size: (D, H, W) of the warped volume; None: the input's size.
        classes: the number of logits.
        filters: of the classifier's first convolution.
        localization_filters: of both 3-D convolutions of the localization network, and width of its hidden layer.

    Raises:
        UsageError: an input size too small for the convolutions.
    """
    channels, *size = input_shape
    output_size = tuple(output_size or size)
    transformation, count = Affine(rank=3), localization_filters
    localization = cnn_localization("st-volume", input_shape, transformation.num_parameters, count, count, rank=3)
    transformer = SpatialTransformer(localization, transformation, output_size)
    return VolumeClassifier(transformer, cnn((channels, *output_size[1:]), classes, filters))
