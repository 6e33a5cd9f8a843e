"""Generate the figures of the README and of docs/results.md from the result files.

    python benchmarks/readme.py            # write them into the pages and docs/speedup.svg
    python benchmarks/readme.py --check    # check that they are up to date

A block between ``<!-- figures: NAME -->`` and ``<!-- end -->`` is replaced by the text that :data:`BLOCKS` generates.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers.bounds import Bound
from benchmarks.peers.compare import table
from stn_infer.benchmarking.record import Measurement
from stn_infer.benchmarking.report.chart import as_file, panel
from stn_infer.benchmarking.report.speedup import ratio_text, speedup
from stn_infer.benchmarking.report.verdict import verdict_of
from stn_infer.benchmarking.result import BenchResult, Model, read_result
from stn_infer.models.catalog import SHIPPED, shipped

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS_PAGE = ROOT / "docs" / "results.md"
PEERS = ROOT / "benchmarks" / "peers" / "README.md"
PLOT = ROOT / "docs" / "speedup.svg"
CONFORMANCE = ROOT / "docs" / "conformance.md"
RESULTS = ROOT / "benchmarks" / "results"
MACHINE = "xeon-2.5ghz-2-cores"
PAGES = (README, RESULTS_PAGE, PEERS)
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# Variant to its name on the page of results.
NAMES = {
    "ort-plain": "onnxruntime, the file that `torch.onnx.export` writes",
    "benchmarks.peers.onnx_tools:onnxslim": "the same after onnxslim",
    "benchmarks.peers.onnx_tools:onnxsim": "the same after onnxsim",
    "eager": "eager PyTorch",
    "compile": "torch.compile",
    "ort": "onnxruntime, our file, its function inlined",
    "ort-fused": "onnxruntime, our file, with the plugin library",
}
WARPS = {
    "warp_digits": "256 x 1 x 28 x 28",
    "warp_photos": "16 x 3 x 224 x 224",
    "warp_features": "64 x 32 x 28 x 28",
}
WARP_COLUMNS = {
    "eager": "PyTorch",
    "compile": "torch.compile",
    "benchmarks.peers.kornia_warps:homography_warp": "kornia",
    "ort-plain": "onnxruntime, plain export",
    "ort": "onnxruntime, our function",
    "ort-fused": "onnxruntime, fused",
}


def peers() -> BenchResult:
    """The result of ``benchmarks/peers/compare.py`` that the pages show."""
    return read_result(RESULTS / f"peers-{MACHINE}.json")


def headline() -> str:
    """What the chart shows, in two sentences with the machine."""
    result = peers()
    machine, model = result.machine, _tutorial(result)
    where = f"{machine.cpu}, {machine.cores} cores, onnxruntime {result.versions['onnxruntime-gpu']}"
    return f"The tutorials' STN in float32 on an {where}. {' '.join(verdict_of(result, model))}"


def tutorial() -> str:
    """The whole tutorial STN at batch 256."""
    result = peers()
    plain = result.get("ort-plain", 256, "tutorial-stn-r")
    lines = ["| tutorial STN, batch 256 | ms | speedup over the plain export (95 % CI) |", "|---|---:|---:|"]
    for variant, name in NAMES.items():
        row = result.get(variant, 256, "tutorial-stn-r")
        ratio = "1" if row is plain else ratio_text(speedup(row, plain))
        lines.append(f"| {name} | {_ms(row)} | {ratio} |")
    return "\n".join(lines)


def warps() -> str:
    """The warp alone, with the lower bound of its time."""
    result = peers()
    bounds = _json(f"peers-{MACHINE}-bounds.json")["bounds"]
    least = {bound["model"]: bound["ms"] for bound in bounds}
    names = {model.case.model.partition(":")[2]: model.name for model in result.models}
    lines = [f"| warp alone, ms | {' | '.join(WARP_COLUMNS.values())} | lower bound |", "|---|" + "---:|" * 7]
    for factory, shape in WARPS.items():
        name = names[factory]
        rows = [row for row in result.measurements if row.model == name]
        found = {row.variant: row for row in rows}
        lines.append(
            f"| {shape} | {' | '.join(_ms(found[variant]) for variant in WARP_COLUMNS)} | {_digits(least[name])} |"
        )
    return "\n".join(lines)


def all_peers() -> str:
    """Every case in every other library."""
    bounds = [Bound(**least) for least in _json(f"peers-{MACHINE}-bounds.json")["bounds"]]
    return table(peers(), bounds)


def models() -> str:
    """The shipped models' errors and their baselines', as they were measured when they were trained."""
    lines = ["| shipped model | error | baseline (no STN) |", "|---|---:|---:|"]
    for model in map(shipped, SHIPPED):
        baseline = model.results.twin_error
        cell = "" if baseline is None else f"{baseline:.2f} %"
        lines.append(f"| `{model.name}`: {model.recipe.description} | {model.results.error:.2f} % | {cell} |")
    return "\n".join(lines)


def rewritten() -> str:
    """Our affine networks with ``affine_grid`` in place of this package's layer."""
    rows = _json(f"portable_vs_plain-{MACHINE}.json")["rows"]
    ours = {(row["model"], row["batch_size"]): row["whole_ms"] for row in rows if row["file"] == "portable"}
    ratios = [
        row["whole_ms"] / ours[row["model"], row["batch_size"]] for row in rows if row["file"] == "plain, affine_grid"
    ]
    return (
        f"Written with `affine_grid`, the same networks run from our file with a speedup of {min(ratios):.1f}x to "
        f"{max(ratios):.1f}x over their plain export (`benchmarks/suites/portable_vs_plain.toml`)."
    )


def running() -> str:
    """Memory and throughput of ``run``."""
    memory = max(_json(f"run_memory-{MACHINE}.json")["runs"], key=lambda run: run["images"])
    throughput = _json(f"run_throughput-{MACHINE}.json")
    return (
        f"`run` predicts {memory['images']:,} small images in {memory['peak_mb']:.0f} MB of memory. Its wall time is "
        f"{throughput['ratio_within']:.2f} times the CPU time of decoding and inference divided by the number of cores."
    )


def importers() -> str:
    """The conformance page's table of importers."""
    page = CONFORMANCE.read_text(encoding="utf-8")
    lines = page[page.index("| importer |") :].splitlines()
    return "\n".join(lines[: lines.index("")])


BLOCKS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "tutorial": tutorial,
    "warps": warps,
    "models": models,
    "rewritten": rewritten,
    "running": running,
    "peers": all_peers,
    "importers": importers,
}


def filled(text: str) -> str:
    """``text`` with all its blocks filled again.

    Raises:
        KeyError: a block has an unknown name.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def plot() -> str:
    """Speedups of the whole tutorial STN at batch 256, as SVG."""
    result = peers()
    model = _tutorial(result)
    drawn = panel(result, model, 256, "ort-plain", "Tutorial STN, batch 256: speedup over torch.onnx.export")
    return as_file([drawn], "Speedups with 95 % confidence intervals", width=480)  # also for telephones


def _tutorial(result: BenchResult) -> Model:
    return next(model for model in result.models if model.name == "tutorial-stn-r")


def _ms(row: Measurement) -> str:
    return "not available" if row.median_ms is None else _digits(row.median_ms)


def _digits(ms: float) -> str:
    """Three significant digits."""
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def _json(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if check and before != after:
            raise SystemExit(f"the figures in {page.name} do not match the results; run benchmarks/readme.py")
        if not check:
            page.write_text(after, encoding="utf-8")
    if check and PLOT.read_text(encoding="utf-8") != plot():
        raise SystemExit(f"{PLOT.name} does not match the results; run benchmarks/readme.py")
    if not check:
        PLOT.write_text(plot(), encoding="utf-8")


if __name__ == "__main__":
    main()
