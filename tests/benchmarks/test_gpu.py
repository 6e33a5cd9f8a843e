"""``benchmarks/gpu.py`` without a GPU: every step at small sizes on the CPU, and the resulting figures."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_cases
from benchmarks.gpu_check.records import Record, read
from benchmarks.gpu_warps import WARPS, Warp, Work
from stn_infer import plugin
from stn_infer.errors import ModelError
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)


@pytest.fixture(autouse=True)
def tf32() -> Iterator[None]:
    allowed = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def work(case: str, ours: str, targets: dict[str, float], *, on_device: bool = True) -> Work:
    calls = {ours: lambda: torch.ones(2)}
    return Work(case, calls, torch.zeros(2), 1e-3, ours, targets, on_device)


def measured(path: Path, *arguments: str, code: int = 0) -> list[Record]:
    """The records of a run on the CPU at small sizes."""
    given = ["--device", "cpu", "--tiny", "--no-compile", "--samples", "1", "-o", str(path), *arguments]
    assert gpu.main(given) == code
    return list(read(path))


def test_every_step_on_the_cpu(tmp_path: Path) -> None:
    records = measured(tmp_path / "results" / "cpu.jsonl")
    assert records[0].values["gpu"] == {"name": "cpu"} and records[0].values["versions"]["torch"] == torch.__version__
    assert not {"note", "failure"} & {record.kind for record in records}
    rows = [record for record in records if record.kind == "row"]
    found = {(row.case, row.values["variant"]) for row in rows}
    warps = {case.tiny().name for case in WARPS}
    assert len(warps) == len(WARPS)
    assert {(case, variant) for case in warps for variant in ("fused", "eager", "copy")} <= found
    assert {
        ("tutorial-stn, batch 1", "graph, fused"),
        ("tutorial-stn, batch 3", "eager"),
        ("onnxruntime 2x3x12x17 float32", "op"),
        ("onnxruntime 2x3x12x17 float32", "function"),
    } <= {(row.case.replace("network", "tutorial-stn"), row.values["variant"]) for row in rows}
    assert all(len(row.values["device_samples_ms"]) == 1 and row.values["device_ms"] > 0 for row in rows)
    assert all(0 <= row.values["error"] < 5e-3 for row in rows)
    figures = [record.values["target"] for record in records if record.kind == "figure"]
    shares = [share for case in WARPS for share in ([] if case.share is None else [case.share])]
    assert sorted(figures) == sorted([*shares, *[3.0] * len(WARPS), 5.0, 2.0, 1.0, 1.0, 1.0])


def test_the_targets_that_a_gpu_has_to_reach() -> None:
    shares = {case.name: case.share for case in WARPS if case.share is not None}
    assert shares == {
        "256x3x224x224 float32": 0.8,
        "256x3x224x224 float16": 0.75,
        "256x64x28x28 float32, channels last": 0.7,
        "256x3x224x224 float32, channels last": 0.6,
        "256x3x224x224 float32, projective": 0.6,
        "256x3x224x224 float32, nearest": 0.6,
        "256x3x224x224 float32, basis of 19 rows": 0.5,
        "256x3x224x224 float32, grid": 0.7,
    }
    assert all(case.targets["eager"] == 3.0 and case.targets["compile"] == 1.5 for case in WARPS)


def test_the_cases_cover_the_kernels() -> None:
    cases = WARPS
    assert {case.kind for case in cases} == {"affine", "projective", "basis", "grid", "tensor product", "lattice"}
    assert {len(case.size) for case in cases} == {2, 3} and {case.shape[0] for case in cases} >= {1, 8, 256}
    assert {case.mode for case in cases} == {"bilinear", "nearest", "bicubic"}
    assert {case.dtype for case in cases} == {torch.float32, torch.float16, torch.bfloat16}
    assert {case.channels_last for case in cases} == {True, False}


def test_each_kernel_once_for_a_profiler(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.profiler.profile() as profile:
        assert gpu.main(["--device", "cpu", "--tiny", "--once"]) == 0
    assert capsys.readouterr().out.splitlines() == [case.tiny().name for case in WARPS]
    calls = [event.name for event in profile.events() if event.name.startswith("stn::")]
    assert len(calls) == len(WARPS)


def test_the_fused_variant_of_the_whole_model_is_fused() -> None:
    with torch.inference_mode():
        calls = gpu_cases.network(2, torch.device("cpu"), compiled=False).calls
        with torch.profiler.profile() as profile:
            calls["graph, fused"]()
    names = {event.name for event in profile.events()}
    assert "stn::spatial_transformer" in names and "aten::grid_sampler_2d" not in names


def test_figures_are_speedups_of_the_fused_warp() -> None:
    def row(variant: str, device_ms: float, latency_ms: float) -> gpu.Row:
        return gpu.Row("", variant, device_ms, latency_ms, 0.0, (), ())

    rows = [row("fused", 1.0, 9.0), row("eager", 4.0, 9.0), row("compile", 1.2, 9.0), row("copy", 0.85, 9.0)]
    found = gpu.figures_of(work("a", "fused", {"eager": 3.0, "compile": 1.5}), rows)
    found += gpu.figures_of(work("b", "fused", {"copy": 0.8, "not measured": 1.0}), rows)
    rows = [row("eager", 9.0, 8.0), row("graph, fused", 9.0, 1.0)]
    found += gpu.figures_of(work("whole", "graph, fused", {"eager": 5.0}, on_device=False), rows)
    assert {figure.name: (round(figure.value, 3), figure.reached) for figure in found} == {
        "a: speedup over eager": (4.0, True),
        "a: speedup over compile": (1.2, False),
        "b: share of the copy bandwidth": (0.85, True),
        "whole: speedup over eager": (8.0, True),
    }


def test_a_wrong_output_is_not_timed() -> None:
    with pytest.raises(ModelError, match=r"fused is off by 1\.0e\+00, expected at most 1\.0e-03: not timed"):
        gpu.measure(work("case", "fused", {}), gpu.Timer(torch.device("cpu"), 1))


def test_a_case_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = gpu_cases.warp

    def failing(case: Warp, device: torch.device, compiled: bool = True) -> Work:
        if case.mode == "nearest":
            raise RuntimeError("out of memory")
        return made(case, device, compiled)

    monkeypatch.setattr(gpu_cases, "warp", failing)
    path = tmp_path / "cpu.jsonl"
    records = measured(path, "--part", "warps", "--case", "5x3x12x17 float32", "--run", "monday", code=1)
    failures = {record.case: record.values["reason"] for record in records if record.kind == "failure"}
    assert failures == {"5x3x12x17 float32, nearest": "out of memory"}
    assert "FAILED 5x3x12x17 float32, nearest: out of memory" in capsys.readouterr().out
    rows = {record.case for record in records if record.kind == "row"}
    assert rows == {case.tiny().name for case in WARPS if case.tiny().name.startswith("5x3x12x17 float32")} - set(
        failures
    )

    monkeypatch.undo()  # the same run again measures only what it has not begun
    again = measured(path, "--part", "warps", "--case", "5x3x12x17", "--run", "monday")[len(records) :]
    begun = {record.case for record in again if record.kind == "begin"}
    assert begun == {case.tiny().name for case in WARPS if case.tiny().name.startswith("5x3x12x17 ")} - rows - set(
        failures
    )


def test_a_broken_context_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def failing(*arguments: object) -> Work:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(gpu_cases, "warp", failing)
    monkeypatch.setattr(gpu, "is_broken", lambda device: True)
    records = measured(tmp_path / "cpu.jsonl", "--part", "warps", code=3)
    assert [(record.kind, record.case) for record in records[1:]] == [
        ("begin", WARPS[0].tiny().name),
        ("failure", WARPS[0].tiny().name),
    ]


def test_pytorch_alone_is_enough_to_start() -> None:
    """A GPU machine may have only PyTorch; the other parts import what they need themselves."""
    missing = ("onnx", "onnxruntime", "onnxscript", "orjson", "mlxtend", "safetensors", "click", "PIL", "rich")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import benchmarks.gpu"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_gpu_names_its_file() -> None:
    assert gpu.result_path("NVIDIA H100 80GB HBM3").name == "gpu-h100-80gb-hbm3.jsonl"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error() -> None:
    with pytest.raises(SystemExit, match="finds no usable GPU"):
        gpu.main([])


def test_the_files_that_its_page_names_exist() -> None:
    page = (ROOT / "benchmarks" / "GPU.md").read_text(encoding="utf-8")
    sources = set(re.findall(r"[\w./-]+\.(?:py|cpp|toml)\b", page))
    assert len(sources) > 6
    assert not [source for source in sources if not (ROOT / source).exists()]
