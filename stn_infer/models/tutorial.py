"""The small STN of common tutorials, built from ``affine_grid`` and ``grid_sample``.

It is an example of a user's model: it uses nothing from this package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tutorial_cnn(classes: int = 10, dropout: float = 0.0) -> nn.Sequential:
    """The tutorial's classifier without the spatial transformer: [N, 1, 28, 28] to logits [N, classes]."""
    return nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * 4 * 4, 50),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(50, classes),
    )


class TutorialSTN(nn.Module):
    """Two-convolution localization, affine grid, :func:`tutorial_cnn`: [N, 1, 28, 28] to logits [N, classes].

    Args:
        classes: the number of logits.
        dropout: the classifier's dropout probability during training.
        align_corners: of the grid and the sampler; True for checkpoints trained on torch <= 1.2.
    """

    def __init__(self, classes: int = 10, dropout: float = 0.0, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.localization = nn.Sequential(
            nn.Conv2d(1, 8, 7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(8, 10, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(10 * 3 * 3, 32),
            nn.ReLU(),
        )
        self.head = nn.Linear(32, 6)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
        self.classifier = tutorial_cnn(classes, dropout)

    def forward(self, input: Tensor) -> Tensor:
        """Logits [N, classes]."""
        theta = self.head(self.localization(input)).unflatten(1, (2, 3))
        grid = F.affine_grid(theta, list(input.shape), align_corners=self.align_corners)
        warped = F.grid_sample(input, grid, align_corners=self.align_corners)
        return self.classifier(warped)  # type: ignore[no-any-return]
