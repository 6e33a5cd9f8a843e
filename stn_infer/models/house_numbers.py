"""The house number networks (Jaderberg et al. 2015, section 4.2): no, one, and four spatial transformers.

Five independent classifiers read the digits of one number; class ``classes - 1`` means that there is no digit.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.models.baselines import fcn
from stn_infer.transforms import Transformation

#: Filters of the convolutions (5 x 5, stride 1, padding 2), and whether max pooling (2 x 2) follows.
STAGES = ((48, True), (64, False), (128, True), (160, False), (192, True), (192, False), (192, True), (192, False))
TRANSFORMED = 4  # svhn-st-multi has a transformer before each of the first four convolutions


class HouseNumberNet(nn.Module):
    """Logits [N, digits, classes] from images [N, C, H, W].

    Attributes:
        transformers: one per convolution, an identity where there is none.
        convolutions: convolution, ReLU, and pooling.
        classifier: three fully connected layers.
        heads: one linear layer for all digits.
    """

    def __init__(
        self,
        transformers: Sequence[nn.Module],
        convolutions: Sequence[nn.Module],
        features: int,
        hidden: int,
        digits: int,
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.transformers = nn.ModuleList(transformers)
        self.convolutions = nn.ModuleList(convolutions)
        layers: list[nn.Module] = [nn.Flatten()]
        for width in (features, hidden, hidden):
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.classifier = nn.Sequential(*layers)
        self.heads = nn.Linear(hidden, digits * classes)
        self.digits, self.classes = digits, classes
        # PyTorch's own initial weights shrink the signal by half in each of the eleven layers.
        for layer in [*self.convolutions.modules(), *self.classifier]:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """Logits [N, digits, classes]."""
        for transformer, convolution in zip(self.transformers, self.convolutions, strict=True):
            input = convolution(transformer(input))
        return self.heads(self.classifier(input)).reshape(-1, self.digits, self.classes)  # type: ignore[no-any-return]


def svhn_cnn(
    input_shape: Sequence[int] = (3, 64, 64),
    classes: int = 11,
    digits: int = 5,
    width: float = 1.0,
    hidden: int = 3072,
    dropout: float = 0.5,
) -> HouseNumberNet:
    """Eight convolutions and three fully connected layers, without a transformer.

    Args:
        input_shape: (C, H, W); H and W are multiples of 16. The paper uses 64 and 128 pixels.
        classes: per digit, the last one for "no digit".
        digits: the longest number.
        width: factor on the numbers of filters.
        hidden: width of the fully connected layers.
        dropout: after each fully connected layer.

    Raises:
        UsageError: an input size that is not a multiple of 16.
    """
    return _house_number_net([], input_shape, classes, digits, width, hidden, dropout)


def svhn_st_single(
    transformation: Transformation,
    input_shape: Sequence[int] = (3, 64, 64),
    classes: int = 11,
    digits: int = 5,
    width: float = 1.0,
    hidden: int = 3072,
    dropout: float = 0.5,
    localization_filters: int = 32,
) -> HouseNumberNet:
    """:func:`svhn_cnn` with one transformer at the input, whose localization network has two convolutions.

    Args and errors as for :func:`svhn_cnn`; ``localization_filters`` is also the width of its hidden layer.
    """
    channels, *size = _checked(input_shape)
    count = localization_filters
    localization = nn.Sequential(
        nn.Conv2d(channels, count, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(count, count, 5, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(count * (size[0] // 2) * (size[1] // 2), count),
        nn.ReLU(),
        nn.Linear(count, transformation.num_parameters),
    )
    transformer = SpatialTransformer(localization, transformation, size)
    return _house_number_net([transformer], input_shape, classes, digits, width, hidden, dropout)


def svhn_st_multi(
    transformation: Transformation,
    input_shape: Sequence[int] = (3, 64, 64),
    classes: int = 11,
    digits: int = 5,
    width: float = 1.0,
    hidden: int = 3072,
    dropout: float = 0.5,
    localization_hidden: int = 32,
) -> HouseNumberNet:
    """:func:`svhn_cnn` with a transformer before each of the first four convolutions.

    Each localization network has two hidden layers of ``localization_hidden`` on the features that it warps. Other
    arguments and errors are those of :func:`svhn_cnn`.
    """
    channels, *size = _checked(input_shape)
    transformers = []
    for filters, pooled in STAGES[:TRANSFORMED]:
        localization = fcn((channels, *size), transformation.num_parameters, localization_hidden)
        transformers.append(SpatialTransformer(localization, transformation, size))
        channels = _filters(filters, width)
        size = [length // 2 for length in size] if pooled else size
    return _house_number_net(transformers, input_shape, classes, digits, width, hidden, dropout)


def _house_number_net(
    transformers: Sequence[nn.Module],
    input_shape: Sequence[int],
    classes: int,
    digits: int,
    width: float,
    hidden: int,
    dropout: float,
) -> HouseNumberNet:
    channels, height, cols = _checked(input_shape)
    convolutions = []
    for filters, pooled in STAGES:
        layers: list[nn.Module] = [nn.Conv2d(channels, _filters(filters, width), 5, padding=2), nn.ReLU()]
        convolutions.append(nn.Sequential(*layers, nn.MaxPool2d(2)) if pooled else nn.Sequential(*layers))
        channels = _filters(filters, width)
    features = channels * (height // 16) * (cols // 16)
    every = [*transformers, *(nn.Identity() for _ in STAGES[len(transformers) :])]
    return HouseNumberNet(every, convolutions, features, hidden, digits, classes, dropout)


def _filters(count: int, width: float) -> int:
    return max(1, round(count * width))


def _checked(input_shape: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = input_shape
    if height % 16 or width % 16:
        raise UsageError(f"house number networks take sizes that are multiples of 16, not {height} x {width}")
    return channels, height, width
