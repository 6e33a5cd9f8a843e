"""Export every network of the registry at its own width, with random weights, and write what was fused.

python export/networks.py                 all of them, and the table export/NETWORKS.md
python export/networks.py svhn-st-multi   some of them, without writing the table
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.models import errors_of, packages
from stn_infer.api.export import export
from stn_infer.errors import StnInferError, UsageError
from stn_infer.files import write_atomically
from stn_infer.models import NETWORKS, create

TABLE = Path(__file__).resolve().parent / "NETWORKS.md"
SEED = 0
#: The standard deviation of what is added to tensors of zeros, such as the last layer of a localization network: it
#: moves the grid by some pixels from the identity, differently for each input.
SPREAD = 0.02


@dataclass(frozen=True)
class Row:
    """A network, exported.

    Attributes:
        name: a key of ``NETWORKS``.
        parameters: in millions.
        samplers: GridSample nodes in the plain export.
        fused: how many of them became an op that computes the grid from theta.
        ops: which ops, such as ``affine``, by name, each once.
        error: the largest output error vs. float64 PyTorch, over the output's scale.
        grid_px: likewise the largest distance of sampling points, in pixels; None without a sampler.
        size: bytes of the file.
    """

    name: str
    parameters: float
    samplers: int
    fused: int
    ops: tuple[str, ...]
    error: float
    grid_px: float | None
    size: int

    @property
    def line(self) -> str:
        """Its row of the table in Markdown."""
        cells = [
            self.name,
            _shape(self.name),
            f"{self.parameters:.2f}",
            f"{self.fused} of {self.samplers}" if self.samplers else "-",
            ", ".join(self.ops) or "-",
            f"{self.error:.1e}" + ("" if self.grid_px is None else f", {self.grid_px:.1e} px"),
            f"{self.size / 1e6:.2f}",
        ]
        return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks (default: those without a row)")
    parser.add_argument("--force", action="store_true", help="all networks")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NETWORKS))
    if unknown:
        raise UsageError(f"no such network: {unknown[0]}; expected some of {', '.join(NETWORKS)}")
    known = {} if arguments.force else stored()
    for name in arguments.names or [name for name in NETWORKS if name not in known]:
        with TemporaryDirectory() as folder:
            row = exported(name, Path(folder) / "network.onnx")
        print(row.line, flush=True)
        store({name: row.line})


def stored(table: Path = TABLE) -> dict[str, str]:
    """The rows of the table by network, if it is of the same :func:`packages`; without the blank ones."""
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    if _packages_line() not in lines:
        return {}
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    return {name: line for name, line in rows.items() if name in NETWORKS and line != _blank(name)}


def store(rows: Mapping[str, str], table: Path = TABLE) -> None:
    """Write the table with these rows in place of those that it has; a network without one has a blank row.

    Raises:
        OutputError: it cannot be written.
    """
    lines = {**stored(table), **rows}
    content = [*_head(), *(lines.get(name, _blank(name)) for name in NETWORKS)]
    write_atomically(table, ("\n".join(content) + "\n").encode())


def exported(name: str, path: Path) -> Row:
    """Export a network with random weights to ``path``, verified.

    Raises:
        VerificationError: the file does not compute what the network does.
    """
    network = with_random_weights(name)
    report = export(network, path, input_shapes=[NETWORKS[name].input_shape])
    error, grid_px = errors_of(report)
    return Row(
        name,
        sum(value.numel() for value in network.parameters()) / 1e6,
        len(report.findings),
        sum(finding.fused for finding in report.findings),
        tuple(sorted({str(finding.kind) for finding in report.findings if finding.fused})),
        error,
        grid_px,
        report.size,
    )


def with_random_weights(name: str) -> nn.Module:
    """A network whose transformers do not start at the identity, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = create(name)
        with torch.no_grad():
            for value in network.parameters():
                if not value.any():
                    value.normal_(std=SPREAD)
    return network.eval()


def _head() -> list[str]:
    return [
        "# Every network, exported",
        "",
        "`python export/networks.py` writes this table. Do not edit it.",
        "",
        "- **Weights** are random, those of the localization networks' last layers included: no grid is the identity,",
        "  and they differ between inputs.",
        "- **Fused**: GridSample nodes of PyTorch's export that became one op, which computes the grid from theta.",
        "- **Verified error**: max relative output error and max grid error of the file in onnxruntime vs. float64",
        "  PyTorch, as `export` reports them.",
        "- A blank row was not measured with these versions.",
        _packages_line(),
        "",
        "| network | input | parameters, millions | fused | grid | verified error | MB |",
        "|---|---|--:|--:|---|---|--:|",
    ]


def _packages_line() -> str:
    return f"- With {packages()}."


def _blank(name: str) -> str:
    return f"| {name} | {_shape(name)} | | | | | |"


def _shape(name: str) -> str:
    return " x ".join(map(str, NETWORKS[name].input_shape))


if __name__ == "__main__":
    try:
        main()
    except StnInferError as error:
        raise SystemExit(f"error: {error}") from None
