"""The paper's distorted-digit experiments as recipes: every network with every distortion, on all MNIST digits.

A cell's name is network-distortion in small letters, such as ``st-cnn-affine-rts`` or ``cnn-tc``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stn_infer.models.recipes import Data, Recipe, Training
from stn_infer.preprocess.rule import Preprocess

CANVAS = {"R": (28, 28), "RTS": (42, 42), "P": (28, 28), "E": (28, 28), "TC": (60, 60)}
FAMILIES = ("affine", "projective", "tps")
#: Families that the paper defines, without errors of theirs on these digits.
MORE_FAMILIES = ("piecewise", "translation", "attention")
DIGIT = (28, 28)  # what a transformer hands to its classifier

#: The paper's errors in percent, network by distortion.
PAPER: Mapping[str, Mapping[str, float]] = {
    "fcn": {"R": 2.1, "RTS": 5.2, "P": 3.1, "E": 3.2, "TC": 13.2},
    "cnn": {"R": 1.2, "RTS": 0.8, "P": 1.5, "E": 1.4, "TC": 3.5},
    "st-fcn-affine": {"R": 1.2, "RTS": 0.8, "P": 1.4, "E": 2.7, "TC": 2.0},
    "st-fcn-projective": {"R": 1.3, "RTS": 0.9, "P": 1.4, "E": 2.6},
    "st-fcn-tps": {"R": 1.1, "RTS": 0.8, "P": 1.4, "E": 2.4},
    "st-cnn-affine": {"R": 0.7, "RTS": 0.5, "P": 0.8, "E": 1.2, "TC": 1.7},
    "st-cnn-projective": {"R": 0.8, "RTS": 0.6, "P": 0.8, "E": 1.3},
    "st-cnn-tps": {"R": 0.7, "RTS": 0.5, "P": 0.8, "E": 1.1},
}


@dataclass(frozen=True)
class Cell:
    """A network on a distortion.

    Attributes:
        network: a name of the registry.
        distortion: a key of :data:`CANVAS`.
    """

    network: str
    distortion: str

    @property
    def name(self) -> str:
        return f"{self.network}-{self.distortion.lower()}"

    @property
    def paper(self) -> float | None:
        """The paper's error, percent; None if it has none."""
        return PAPER.get(self.network, {}).get(self.distortion)

    def recipe(self, epochs: int = 30, seeds: tuple[int, ...] = (0,)) -> Recipe:
        """How the cell is trained."""
        canvas = CANVAS[self.distortion]
        shape = (1, *canvas)
        options: dict[str, Any] = {"input_shape": shape}
        if self.network.startswith("st-") and canvas != DIGIT:
            options["output_size"] = DIGIT
        meshed = self.network.endswith(("tps", "piecewise"))
        if meshed:
            options["points"] = (4, 4)
        if "fcn" in self.network:
            options["hidden"] = 256
        return Recipe(
            name=self.name,
            network=self.network,
            input_shape=shape,
            options=options,
            preprocess=Preprocess.parse("color=gray,scale=1/255"),
            labels=tuple("0123456789"),
            data=Data(self.distortion, canvas, "mnist"),
            training=Training(
                epochs=epochs,
                batch_size=128,
                learning_rate=2e-3,
                localization_factor=0.2 if meshed else 0.5,
                seeds=seeds,
                precision="bf16" if self == Cell("cnn", "TC") else "fp32",  # the largest by far
            ),
        )


def cells() -> Iterator[Cell]:
    """All cells with an error in the paper, in the order in which they are trained."""
    cnn = [f"st-cnn-{family}" for family in FAMILIES]
    fcn = [f"st-fcn-{family}" for family in FAMILIES]
    for networks in (cnn, ["cnn"], fcn, ["fcn"]):
        for distortion in CANVAS:
            for network in networks:
                if distortion in PAPER[network]:
                    yield Cell(network, distortion)


def more_cells() -> Iterator[Cell]:
    """Cells that are trained only by name: the paper has no error of theirs."""
    for kind in ("st-cnn", "st-fcn"):
        for family in MORE_FAMILIES:
            for distortion in CANVAS:
                yield Cell(f"{kind}-{family}", distortion)
