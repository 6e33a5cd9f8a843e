"""The third-party models by name. This module does not import torch; importing a checkpoint does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from stn_infer.errors import UsageError
from stn_infer.preprocess.rule import ColorMode, Interpolation, Preprocess

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Foreign:
    """A published third-party model whose checkpoints can be imported.

    Attributes:
        name: as on the command line.
        description: one line.
        function: ``module:function`` in ``stn_infer.foreign`` that imports a state dict.
        input_height, input_width: the size of the input images in the published code.
        interpolation: with which the published code resizes them.
        note: a note on the import for the user, or empty.
    """

    name: str
    description: str
    function: str
    input_height: int
    input_width: int
    interpolation: Interpolation
    note: str = ""

    def load(self, state_dict: Mapping[str, Tensor], **options: Any) -> nn.Module:
        """The module with the checkpoint's weights; ``options`` are keyword arguments of the importing function.

        Raises:
            UsageError: an unknown option, or a malformed value.
            WeightsError: the checkpoint does not contain such a model.
        """
        module, _, function = self.function.partition(":")
        load = getattr(import_module(f"stn_infer.foreign.{module}"), function)
        known = [name for name in inspect.signature(load).parameters if name != "state_dict"]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise UsageError(f"{self.name} has no option {unknown[0]!r}; its options: {', '.join(known)}")
        return load(state_dict, **options)  # type: ignore[no-any-return]

    def input_shape(self, channels: int) -> tuple[int, int, int]:
        """(C, H, W)."""
        return channels, self.input_height, self.input_width

    def preprocess(self, channels: int) -> Preprocess | None:
        """The published pre-processing, resized with Pillow, pixels to -1..1; None for other channels than 1 and 3."""
        if channels not in (1, 3):
            return None
        size = self.input_height, self.input_width
        color: ColorMode = "gray" if channels == 1 else "rgb"
        return Preprocess(color, size, mean=(0.5,), std=(0.5,), interpolation=self.interpolation)


FOREIGN: Mapping[str, Foreign] = {
    foreign.name: foreign
    for foreign in (
        Foreign(
            "dtrb",
            "the TPS rectifier of RARE from deep-text-recognition-benchmark",
            "dtrb:import_dtrb",
            32,
            100,
            "bicubic",
        ),
        Foreign(
            "aster",
            "the TPS rectifier of ASTER's PyTorch port",
            "aster:import_aster",
            64,
            256,
            "bilinear",
            note="aster samples like the published code on torch >= 1.3 and clamps its grid, so it is not fused; a "
            "checkpoint trained on torch <= 1.2 needs align_corners = true in the options of a recipe",
        ),
    )
}
