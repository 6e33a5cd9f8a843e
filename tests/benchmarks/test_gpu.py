"""``benchmarks/gpu.py`` without a GPU: every step at small sizes on the CPU, and what it makes of its times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from stn_infer import plugin
from tests.support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    tf32 = torch.backends.cudnn.allow_tf32
    yield gpu
    torch.backends.cudnn.allow_tf32 = tf32


def test_every_step_on_the_cpu(gpu: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results" / "cpu.json"
    assert gpu.main(["--device", "cpu", "--tiny", "--no-compile", "--samples", "3", "-o", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["gpu"] == {"name": "cpu"} and result["notes"] == []
    assert result["versions"]["torch"] == torch.__version__
    found = {(row["case"], row["variant"]) for row in result["rows"]}
    assert {
        ("4x1x8x8 float32", "fused"),
        ("4x1x8x8 float32", "eager"),
        ("bandwidth 2x3x16x16 float16", "copy"),
        ("bandwidth 2x3x16x16 float32", "fused"),
        ("tutorial-stn, batch 1", "graph, fused"),
        ("onnxruntime 2x3x12x9 float32", "op"),
        ("onnxruntime 2x3x12x9 float32", "function"),
    } <= found
    assert all(len(row["device_samples_ms"]) == 3 and row["device_ms"] > 0 for row in result["rows"])
    assert all(0 <= row["error"] < 5e-3 for row in result["rows"])
    assert [figure["target"] for figure in result["figures"]] == [3.0, 3.0, 0.8, 0.8, 5.0, 2.0, 1.0, 1.0]


def test_the_whole_model_is_fused_where_it_says_so(gpu: ModuleType) -> None:
    with torch.inference_mode():
        calls = gpu.whole(2, torch.device("cpu"), compiled=False).calls
        with torch.profiler.profile() as profile:
            calls["graph, fused"]()
    names = {event.name for event in profile.events()}
    assert "stn::spatial_transformer" in names and "aten::grid_sampler_2d" not in names


def test_figures_are_ratios_to_the_fused_warp(gpu: ModuleType) -> None:
    def row(case: str, variant: str, device_ms: float, latency_ms: float) -> object:
        return gpu.Row(case, variant, device_ms, latency_ms, 0.0, (), ())

    rows = [row("a", "fused", 1.0, 9.0), row("a", "eager", 4.0, 9.0), row("a", "compile", 1.2, 9.0)]
    rows += [row("bandwidth a", "fused", 2.0, 9.0), row("bandwidth a", "copy", 1.7, 9.0)]
    rows += [row("tutorial-stn, batch 1", "eager", 9.0, 8.0), row("tutorial-stn, batch 1", "graph, fused", 9.0, 1.0)]
    found = {figure.name: (round(figure.value, 3), figure.reached) for figure in gpu.figures(rows)}
    assert found == {
        "a: eager / fused": (4.0, True),
        "a: compile / fused": (1.2, False),
        "bandwidth a: share of the copy bandwidth": (0.85, True),
        "tutorial-stn, batch 1: eager / fused in a CUDA graph": (8.0, True),
    }


def test_a_wrong_answer_is_not_timed(gpu: ModuleType) -> None:
    work = gpu.Work("case", {"fused": lambda: torch.ones(2)}, torch.zeros(2), 1e-3)
    with pytest.raises(SystemExit, match=r"case, fused: off by 1\.0e\+00"):
        gpu.measure(work, gpu.Timer(torch.device("cpu"), 1))


def test_a_gpu_names_its_file(gpu: ModuleType) -> None:
    assert gpu.result_path("NVIDIA H100 80GB HBM3").name == "gpu-h100-80gb-hbm3.json"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(gpu: ModuleType) -> None:
    with pytest.raises(SystemExit, match="finds no usable GPU"):
        gpu.main([])
