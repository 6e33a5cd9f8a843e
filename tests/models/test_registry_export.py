"""Every network of the paper's other experiments is exported, fused and verified, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import stn_infer
from stn_infer.models import create

#: Network, input shape, options, and how many samplers fuse.
CASES = [
    ("svhn-st-single", (3, 32, 32), {"width": 0.1, "hidden": 16}, 1),
    ("svhn-st-multi", (3, 32, 32), {"width": 0.1, "hidden": 16}, 4),
    ("birds-4st", (3, 64, 64), {"width": 0.05, "output_size": [32, 32], "classes": 7}, 4),
    ("mnist-addition", (2, 42, 42), {"hidden": 16}, 2),
    ("mnist-addition-projective", (2, 42, 42), {"hidden": 16}, 2),
    ("mnist-addition-tps", (2, 42, 42), {"hidden": 16}, 2),
    ("colocalization", (1, 84, 84), {}, 1),
    ("st-volume", (1, 28, 28, 28), {"filters": 4, "localization_filters": 3}, 1),
]


def export_random(
    name: str, shape: tuple[int, ...], options: dict[str, object], folder: Path
) -> stn_infer.ExportReport:
    """Export a recipe of the network whose weights, the heads' included, are random."""
    torch.manual_seed(1)
    network = create(name, input_shape=shape, **options)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.02 * torch.randn_like(value))
    values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    lines = ["[model]", f'network = "{name}"', f"input_shape = {list(shape)}", f"options = {{ {values} }}"]
    (folder / "own.toml").write_text("\n".join(lines) + "\n")
    save_file({key: value.clone() for key, value in network.state_dict().items()}, folder / "own.safetensors")
    return stn_infer.export(str(folder / "own.toml"), folder / "own.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "options", "samplers"), CASES)
def test_every_transformer_fuses(
    name: str, shape: tuple[int, ...], options: dict[str, object], samplers: int, tmp_path: Path
) -> None:
    report = export_random(name, shape, options, tmp_path)
    assert report.verification.passed
    assert [finding.fused for finding in report.findings] == [True] * samplers
    if name == "colocalization":
        assert report.outputs == ("crop [batch, 1, 28, 28]", "box [batch, 4]")
        columns = ["object_left", "object_top", "object_right", "object_bottom"]
        assert header_of_run(shape, tmp_path) == ["input", *columns]
    if name.startswith("svhn"):
        assert header_of_run(shape, tmp_path) == ["input", "number"]
        _header, *lines = (tmp_path / "out/predictions-00000.csv").read_text().splitlines()
        numbers = [line.rpartition(",")[2] for line in lines]
        assert len(numbers) == 2 and all(len(number) <= 5 and set(number) <= set("0123456789") for number in numbers)


def header_of_run(shape: tuple[int, ...], folder: Path) -> list[str]:
    """The columns that ``run`` writes for two samples."""
    np.save(folder / "x.npy", np.random.default_rng(0).random((2, *shape), np.float32))
    summary = stn_infer.run(folder / "own.onnx", folder / "x.npy", folder / "out")
    assert summary.ok == 2
    return (folder / "out/predictions-00000.csv").read_text().splitlines()[0].split(",")
