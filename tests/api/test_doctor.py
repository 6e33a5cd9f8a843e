"""doctor: required parts work here, and missing or broken parts are named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stn_infer import plugin
from stn_infer.api import doctor
from stn_infer.backends.ort import cuda_problem
from stn_infer.cli.doctor import command
from stn_infer.cli.main import main
from stn_infer.extras import install


def test_the_parts_that_the_tests_need_work() -> None:
    checks = {check.name: check for check in doctor.doctor().checks}
    assert list(checks) == list(doctor._CHECKS)
    assert all(check.status != "broken" for check in checks.values()), checks
    assert checks["onnxruntime, CPU"].status == checks["PyTorch"].status == "ok"
    assert "runs and is right" in checks["onnxruntime, CPU"].detail
    problem = cuda_problem()
    assert checks["onnxruntime, CUDA"].status == ("ok" if problem is None else "missing")
    assert all(check.detail and "\n" not in check.detail + check.advice for check in checks.values())


def test_a_missing_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    check = doctor._package("matplotlib", "report")
    assert (check.status, check.advice) == ("missing", install("report"))


def test_without_pytorch_only_what_needs_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    checks = {check.name: check for check in doctor.doctor().checks}
    assert checks["PyTorch"].status == "missing" and checks["PyTorch"].advice == install("export")
    assert {checks[name].status for name in ("torch.compile", "PyTorch, CUDA")} == {"missing"}
    assert checks["onnxruntime, CPU"].status == "ok" and checks["plugin library"].status != "broken"


@pytest.mark.parametrize(
    "installed, status, words",
    [
        ({"onnxruntime": "1.31.1"}, "ok", "onnxruntime 1."),
        ({}, "ok", "a build of your own 1."),
        (
            {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"},
            "broken",
            "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are installed, and overwrite each other's files",
        ),
    ],
)
def test_two_packages_of_onnxruntime_are_found(
    installed: dict[str, str], status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "onnxruntimes", lambda: installed)
    check = doctor._ort_cpu()
    assert check.status == status and words in check.detail
    if status == "broken":
        assert check.advice.startswith("pip uninstall -y onnxruntime onnxruntime-gpu, then one of them: ")
        assert install("cpu") in check.advice and install("gpu") in check.advice


def test_a_missing_onnxruntime_names_both_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = doctor._ort_cpu()
    assert (check.status, check.advice) == ("broken", f"{install('cpu')}, or on a GPU {install('gpu')}")
    assert doctor._ort_cuda().status == "missing"
    assert not plugin.available() or doctor._plugin().status == "ok"


def test_a_missing_tensorrt_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    check = doctor._tensorrt("tensorrt")
    assert check.status == "missing" and install("tensorrt") in check.detail
    assert "have not been tested on a GPU with full TensorRT" in check.detail


def test_cuda_kernels_are_tried_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_infer import plugin

    state = plugin.PluginInfo(Path("lib.so"), None, "1.2", True, "plain", True, True, None, None, None, ())
    monkeypatch.setattr(plugin, "info", lambda: state)
    monkeypatch.setattr(doctor, "_run_portable_node", lambda *_, **__: "a node runs")
    for problem, words in ((None, "that run on cuda:0"), ("no code for it", ", which are not used: no code for it")):
        monkeypatch.setattr(plugin, "cuda_problem", lambda problem=problem: problem)
        assert f"CUDA kernels{' ' if problem is None else ''}{words}; a node runs" in doctor._plugin().detail


def test_no_compiler_is_missing_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    for value in (None, "nonsense++"):
        monkeypatch.delenv("CXX", raising=False)
        if value:
            monkeypatch.setenv("CXX", value)
        assert doctor._compiler().status == "missing"


def test_a_part_with_wrong_results_is_broken_and_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TOLERANCE", 0.0)
    monkeypatch.setattr(doctor, "_CHECKS", {"onnxruntime, CPU": doctor._ort_cpu})
    done = CliRunner().invoke(command, [])
    assert done.exit_code == 1
    assert done.output.startswith("broken")
    found = doctor.doctor()
    assert not found.works and str(found) == done.output.rstrip() and "<pre>broken" in found._repr_html_()
    assert "spatial transformer node is off by" in done.output


def test_json_has_the_same_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CHECKS", {"machine": doctor._machine})
    done = CliRunner().invoke(main, ["doctor", "--json"], catch_exceptions=False)
    content = json.loads(done.output)
    (check,) = content["checks"]
    assert content["works"] is True
    assert check["name"] == "machine" and check["status"] == "ok" and "cores" in check["detail"]
