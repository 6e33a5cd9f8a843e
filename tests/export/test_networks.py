"""Every network of the registry, exported at its own width: as many fused samplers as it has transformers, 1e-5."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from export import networks
from stn_infer.models import NETWORKS
from tests.support.paths import ROOT

TOLERANCE = 1e-5
#: Where float32 PyTorch itself is off by more: 1.4e-5 of crops at the places of a soft argmax.
WIDER = {"colocalization": 2e-5}
#: Spatial transformers of each network, by the paper; one unless told here.
TRANSFORMERS = {
    **dict.fromkeys(("fcn", "cnn", "tutorial-cnn"), 0),
    **dict.fromkeys(
        ("svhn-cnn", "svhn-cnn-small", "birds-cnn", "birds-cnn-small", "volume-cnn", "volume-cnn-small"), 0
    ),
    **dict.fromkeys(("birds-2st", "birds-2st-small"), 2),
    **dict.fromkeys(("mnist-addition", "mnist-addition-projective", "mnist-addition-tps"), 2),
    **dict.fromkeys(("svhn-st-multi", "svhn-st-multi-small", "birds-4st"), 4),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "st-fcn-translation" else pytest.mark.slow) for name in NETWORKS]
)
def test_every_transformer_is_fused_and_the_file_is_right(name: str, tmp_path: Path) -> None:
    row = networks.exported(name, tmp_path / "network.onnx")
    assert row.samplers == row.fused == TRANSFORMERS.get(name, 1)
    assert row.error <= WIDER.get(name, TOLERANCE)
    assert row.size == (tmp_path / "network.onnx").stat().st_size > 4 * 1e6 * row.parameters
    assert (row.grid_px is not None) == bool(row.samplers)


def test_the_committed_table_has_every_network_and_each_row_is_within_the_tolerance() -> None:
    lines = networks.TABLE.read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if " x " in line]
    assert [row[0] for row in rows] == list(NETWORKS)
    for name, shape, _parameters, fused, grid, error, size in rows:
        count = TRANSFORMERS.get(name, 1)
        assert shape == " x ".join(map(str, NETWORKS[name].input_shape))
        if size:  # measured
            assert fused == (f"{count} of {count}" if count else "-") and (grid == "-") == (count == 0), name
            assert 0 < float(error.partition(",")[0]) <= WIDER.get(name, TOLERANCE), name


def test_rows_are_replaced_and_those_of_other_versions_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "NETWORKS.md"
    assert networks.stored(table) == {}
    first, second = (networks.Row("cnn", 0.1, 0, 0, (), error, None, 4_200_000).line for error in (1e-7, 2e-7))
    other = networks.Row("st-cnn-tps", 0.12, 1, 1, ("basis",), 3e-7, 2e-6, 480_000).line
    assert other == "| st-cnn-tps | 1 x 28 x 28 | 0.12 | 1 of 1 | basis | 3.0e-07, 2.0e-06 px | 0.48 |"
    networks.store({"cnn": first}, table)
    networks.store({"cnn": second, "st-cnn-tps": other}, table)
    assert networks.stored(table) == {"cnn": second, "st-cnn-tps": other}
    assert len([line for line in table.read_text().splitlines() if " x " in line]) == len(NETWORKS)
    monkeypatch.setattr(networks, "packages", lambda: "torch 9")
    assert networks.stored(table) == {}
    networks.store({"cnn": first}, table)
    assert networks.stored(table) == {"cnn": first}


@pytest.mark.parametrize("name", ["st-fcn-attention", "mnist-addition"])
def test_the_grids_differ_from_the_identity_and_between_inputs(name: str) -> None:
    network = networks.with_random_weights(name)
    seen: list[torch.Tensor] = []
    for module in network.modules():
        if type(module).__name__ == "SpatialTransformer":
            module.localization.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        network(torch.rand(2, *NETWORKS[name].input_shape, generator=torch.Generator().manual_seed(0)))
    assert seen
    for parameters in seen:
        assert (parameters[0] - parameters[1]).abs().max() > 1e-3


def test_an_unknown_name_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(ROOT / "export" / "networks.py")
    monkeypatch.setattr(sys, "argv", [script, "st-cnn-afine"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert str(end.value).startswith("error: no such network: st-cnn-afine; expected some of fcn, ")
