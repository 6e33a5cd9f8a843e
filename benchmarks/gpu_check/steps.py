"""The steps of a check on a GPU, in order of what they are worth: correctness, headline figures, and the rest."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "build" / "plugins" / "tests"
LIBRARY = ROOT / "build" / "plugins" / "libstn_plugins.so"
#: Steps that give correctness and the headline figures of every kernel, and the seconds that they may take in all.
FIRST, FIRST_SECONDS = ("kernels", "tensorrt-host", "onnxruntime-host", "headline", "tests"), 240.0
_ONE = "16x1x12x17"  # digits at small sizes
_IN_OTHER_STEPS = {"test_sanitizers.py", "test_tensorrt_host.py", "test_onnxruntime_host.py"}
_SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats")


@dataclass(frozen=True)
class Step:
    """A program to run.

    Attributes:
        name: of the step.
        command: the program and its arguments.
        limit: seconds until it is killed.
        least: with fewer seconds left, it is not started.
        quiet: seconds without output until it is killed.
        restarts: it writes records of its cases and can be started again for the rest.
        gpu_only: it measures nothing without a GPU.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    least: float = 10.0
    quiet: float | None = None
    restarts: bool = False
    gpu_only: bool = False


def _tool(name: str) -> str:
    """A program of the CUDA toolkit, which is often not on PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin") or name


def steps(device: str, results: Path, stem: str, *, tiny: bool, python: str = sys.executable) -> tuple[Step, ...]:
    """All steps.

    Args:
        device: ``cuda:N``, or ``cpu`` to try them.
        results, stem: the folder for results and the beginning of their names.
        tiny: small sizes, and of slow steps one case.
        python: the interpreter.
    """
    on_gpu = device != "cpu"
    cuda = ("--cuda",) if on_gpu else ()
    kernels, small = str(PROGRAMS / "kernels_test"), ("--tiny",) if tiny else ()
    sanitizer = (_tool("compute-sanitizer"), "--error-exitcode", "9", "--tool")
    sections = tuple(word for name in _SECTIONS for word in ("--section", name))
    counters = (
        _tool("ncu"),
        "--clock-control",
        "none",
        "-k",
        f"regex:^({'|'.join(kernel_names())})$",
        *sections,
        "--csv",
    )
    counters += ("--log-file", str(results / f"{stem}-ncu.csv"))
    build = (python, "-m", "benchmarks.gpu_check.build", "--if-needed")
    measure = (python, "-W", "ignore", "benchmarks/gpu.py", "--device", device, *small)
    feed = (python, "-W", "ignore", "benchmarks/gpu_feed.py", "--device", device)
    profiles = (python, "-W", "ignore", "benchmarks/gpu_profiles.py", "--device", device)
    decode = (python, "-W", "ignore", "benchmarks/gpu_decode.py", "--device", device)
    samples = ("--samples", "3" if tiny else "30")
    pytest = (python, "-W", "ignore", "-m", "pytest", "-v", "--tb=short", "-W", "ignore", "-p", "no:cacheprovider")
    compare = (python, "benchmarks/peers/compare.py", "--device", device, "--boundary", "device", "--case", "0")
    quickly = ("--rounds", "1", "--seconds", "0.1" if tiny else "0.5", "-o", str(results / f"{stem}-peers.json"))
    return (
        Step("library", (*build, *(() if on_gpu else ("--no-cuda",))), 200),
        Step("kernels", (kernels, *cuda, *(("--every", "200") if tiny else ())), 55),
        Step("tensorrt-host", (str(PROGRAMS / "tensorrt_host"), str(LIBRARY), *cuda), 15),
        Step("onnxruntime-host", (str(PROGRAMS / "onnxruntime_host"), str(LIBRARY), *cuda), 10),
        Step("headline", (*measure, "--no-compile", *samples), 95, 20, quiet=70, restarts=True),
        Step("tests", (*pytest, "--maxfail", "10", "-m", "gpu", *gpu_tests()), 65, 20),
        Step("feed", (*feed, *small), 60, 20, restarts=True),
        Step("profiles", (*profiles, *small), 60, 30, restarts=True),
        Step("decode", (*decode, *small), 60, 20, restarts=True),
        # Devices that do not exist are refused on purpose, by calls of CUDA that fail.
        Step(
            "memcheck",
            (*sanitizer, "memcheck", "--report-api-errors", "no", kernels, "--cuda", "--every", "7"),
            *(60, 20),
            gpu_only=True,
        ),
        Step("initcheck", (*sanitizer, "initcheck", kernels, "--cuda", "--every", "7"), 60, 20, gpu_only=True),
        Step("counters", (*(counters if on_gpu else ()), *measure, "--once"), 90, 30),
        Step(
            "compile",
            (*measure, "--part", "warps", *samples, *(("--case", _ONE) if tiny else ())),
            *(180, 30),
            quiet=90,
            restarts=True,
        ),
        Step("peers", (*compare, *quickly), 400 if tiny else 150, 60),
    )


def kernel_names() -> list[str]:
    """The names of our kernels, among those that PyTorch launches; without the one that only tells that it loads."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "plugins" / "src" / "kernels").glob("cuda_*")]
    found = {name for text in sources for name in re.findall(r"__global__[^;{]*?(\w+_kernel)\(", text)}
    return sorted(found - {"probe_kernel"})


def environment() -> dict[str, str]:
    """Variables for programs in Python: they find the source tree, and what else they found before."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "STN_LOG": "1"}


def gpu_tests() -> tuple[str, ...]:
    """The files with tests that need a GPU, without those that run what other steps run."""
    paths = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if path.name not in _IN_OTHER_STEPS]
    return tuple(str(path.relative_to(ROOT)) for path in paths if "mark.gpu" in path.read_text(encoding="utf-8"))
