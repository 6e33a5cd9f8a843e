"""The table ``export/PAPER.md``: errors of the trained cells beside the paper's, and how each was trained.

    python export/paper.py    write it from export/results/

A cell without a result stays blank. `export/train.py` writes the table after training cells.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.cells import CANVAS, PAPER, Cell, cells
from export.experiments import Experiment, experiments, folder_experiments
from export.trainer import Run
from stn_infer.errors import InputError, StnInferError
from stn_infer.files import write_atomically

HERE = Path(__file__).resolve().parent
RESULTS, TABLE = HERE / "results", HERE / "PAPER.md"
#: Other scores of an experiment, as :func:`export.trainer.measure` names them.
SCORES = {"digit_error": "error of a digit {:.2f} %", "iou": "mean IoU {:.3f}"}
Figures = Mapping[str, Any]
EVERY: tuple[Cell | Experiment, ...] = (*cells(), *experiments(), *folder_experiments())


def write(results: Path = RESULTS, path: Path = TABLE) -> None:
    """Write the table of the results in a folder."""
    write_atomically(path, table(read(results)).encode())


def read(folder: Path) -> dict[str, Figures]:
    """What was recorded, by cell.

    Raises:
        InputError: a file that is not a result.
    """
    found = {}
    for cell in EVERY:
        path = folder / f"{Run(cell.recipe(), False, 0).name}.json"
        if path.is_file():
            try:
                figures = json.loads(path.read_text())
                float(figures["error"]), int(figures["epochs"]), int(figures["images"]), int(figures["seconds"])
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{path} is not the result of a training run; delete it and train again") from None
            found[cell.name] = figures
    return found


def table(found: Mapping[str, Figures]) -> str:
    """The page in Markdown."""
    return "\n".join(
        [
            "# The paper's experiments",
            "",
            "`make paper` trains what is missing and writes this page; `python export/paper.py` writes it alone.",
            "Do not edit it.",
            "",
            "Test errors in percent, of one seed, and in parentheses the paper's. A cell that was not trained",
            "has only the latter.",
            "",
            "## Distorted MNIST",
            "",
            *_distorted(found),
            "",
            "## Other experiments",
            "",
            "SVHN and CUB-200-2011 need your copy of the data set. House numbers, two parts and volumes are stand-ins",
            "of our own at a reduced width, for which the paper has no figures.",
            "",
            *_others(found),
            "",
            "## Training runs",
            "",
            "Seconds are those of one CPU core unless a GPU is named, on machines that did other work beside.",
            "",
            "| cell | epochs | batch | learning rate | convolutions | seconds | tested on |",
            "|---|--:|--:|--:|---|--:|--:|",
            *(_run(cell, found[cell.name]) for cell in EVERY if cell.name in found),
            "",
        ]
    )


def _distorted(found: Mapping[str, Figures]) -> Iterable[str]:
    yield f"| network | {' | '.join(CANVAS)} |"
    yield f"|---|{'--:|' * len(CANVAS)}"
    for network, errors in PAPER.items():
        row = [_beside(found.get(Cell(network, kind).name), errors.get(kind)) for kind in CANVAS]
        yield f"| {network} | {' | '.join(row)} |"


def _others(found: Mapping[str, Figures]) -> Iterable[str]:
    yield "| cell | error | also |"
    yield "|---|--:|---|"
    for experiment in (*experiments(), *folder_experiments()):
        figures = found.get(experiment.name, {})
        scores = [text.format(_score(name, figures)) for name, text in SCORES.items() if name in figures]
        yield f"| {experiment.name} | {_beside(figures, experiment.paper)} | {', '.join(scores)} |"


def _score(name: str, figures: Figures) -> float:
    return float(figures[name]) / (100 if name == "iou" else 1)


def _beside(figures: Figures | None, paper: float | None) -> str:
    ours = f"**{figures['error']:.2f}**" if figures else ""
    return f"{ours} ({paper})".strip() if paper is not None else ours


def _run(cell: Cell | Experiment, figures: Figures) -> str:
    training = cell.recipe().training
    assert training is not None
    device = figures.get("device", "cpu")
    seconds = f"{figures['seconds']:,}" + ("" if device == "cpu" else f" ({device})")
    return (
        f"| {cell.name} | {figures['epochs']} | {training.batch_size} | {training.learning_rate:g} "
        f"| {figures.get('precision', 'fp32')} | {seconds} | {figures['images']:,} |"
    )


if __name__ == "__main__":
    try:
        write()
    except StnInferError as error:
        raise SystemExit(f"error: {error}") from None
