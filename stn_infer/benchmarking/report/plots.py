"""The plots of a report, as SVG text: latency and throughput against batch size, percentiles, stages."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from stn_infer.benchmarking.report.names import names
from stn_infer.errors import MissingDependencyError
from stn_infer.extras import install
from stn_infer.printing import shortened

if TYPE_CHECKING:
    from stn_infer.benchmarking.result import BenchResult, Model

_STAGES = {"grid": "#d62728", "sampling": "#1f77b4", "rest": "#c7c7c7"}


def plots(result: BenchResult, model: Model) -> list[str]:
    """SVG elements for one model; those without anything to show are left out.

    Raises:
        MissingDependencyError: matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"plots need matplotlib ({error}); {install('report')}") from None
    rows = [row for row in result.rows(model) if row.median_ms is not None]
    if not rows:
        return []
    variants = list(dict.fromkeys(row.variant for row in rows))
    palette = matplotlib.colormaps["tab10" if len(variants) <= 10 else "tab20"]
    colors = {name: palette(index % palette.N) for index, name in enumerate(variants)}
    known = {variant: _label(name) for variant, name in names(result, model).items()}
    drawn = []

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in variants:
        mine = [row for row in rows if row.variant == name]
        batches = [row.batch_size for row in mine]
        left.plot(batches, [row.median_ms for row in mine], "o-", color=colors[name], label=known[name])
        right.plot(batches, [row.throughput for row in mine], "o-", color=colors[name])
    for axes, title, unit in ((left, "Latency: median", "ms per call"), (right, "Throughput", "samples/s")):
        axes.set(title=title, xlabel="batch size", ylabel=unit, xscale="log", yscale="log")
        axes.xaxis.minorticks_off()
        axes.set_xticks(list(model.case.batch_sizes), labels=[str(batch) for batch in model.case.batch_sizes])
        axes.grid(True, alpha=0.3)
    left.legend(fontsize="small")
    drawn.append(_svg(figure))

    batches = list(model.case.batch_sizes)
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
        for row in rows:
            if row.batch_size == batch:
                ticks = [f"p{percent:g}" for percent in row.percentiles]
                axes.plot(ticks, list(row.percentiles.values()), "o-", color=colors[row.variant])
        axes.set(title=f"Percentiles, batch {batch}", ylabel="ms", yscale="log")
        axes.grid(True, alpha=0.3)
    drawn.append(_svg(figure))

    staged = [row for row in rows if row.shares and row.batch_size == max(batches)]
    kernels = result.stages_of_kernels
    if staged:
        figure = Figure(figsize=(10, 0.6 * len(staged) + 1.2), layout="constrained")
        axes = figure.subplots()
        lefts = [0.0] * len(staged)
        for stage, color in _STAGES.items():
            scales = [1.0 if kernels else row.median_ms or 0.0 for row in staged]
            widths = [scale * (row.shares or {}).get(stage, 0.0) for scale, row in zip(scales, staged, strict=True)]
            axes.barh([known[row.variant] for row in staged], widths, left=lefts, color=color, label=stage)
            lefts = [start + width for start, width in zip(lefts, widths, strict=True)]
        title = f"Where the time goes, batch {max(batches)}: shares of the {'kernels' if kernels else 'median'}"
        axes.set(title=title, xlabel="share of the kernels' time" if kernels else "ms per call")
        axes.invert_yaxis()
        axes.legend(fontsize="small")
        drawn.append(_svg(figure))
    return drawn


def _label(name: str) -> str:
    """A name that matplotlib draws as it is: no formula, no control characters; cut where it is long."""
    return shortened(name).replace("$", r"\$").removeprefix("_")


def _svg(figure: Any) -> str:
    """A figure as an SVG element; the same figure gives the same text."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "stn-infer", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser draws the text
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
