"""Bars of speedups with their confidence intervals, as SVG: in a page as wide as it is, or a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stn_infer.benchmarking.record import Measurement
from stn_infer.benchmarking.report.names import is_ours, names
from stn_infer.benchmarking.report.speedup import ratio_text, reported
from stn_infer.benchmarking.report.verdict import milliseconds
from stn_infer.benchmarking.result import BenchResult, Model
from stn_infer.benchmarking.stats import Interval
from stn_infer.printing import shortened
from stn_infer.web import COLORS, text

#: CSS of the elements, for the page that they are in.
STYLE = """
.chart { display: block } .chart text { font: 13px system-ui, sans-serif; fill: var(--text) }
.chart .dim { fill: var(--dim) } .chart .head { font-weight: bold } .chart .ours { fill: var(--ours) }
.chart .theirs { fill: var(--theirs) } .chart line { stroke: var(--text); stroke-width: 1.5 }
.chart .time { paint-order: stroke; stroke: var(--page); stroke-width: 8px }
.chart .equal { stroke: var(--dim); stroke-width: 1; stroke-dasharray: 3 3 }
"""

_SPAN = 50.0  # % of the width that the longest interval ends at; the figures stand behind
_ROW, _BAR, _HEAD = 44, 14, 26  # pixels


@dataclass(frozen=True)
class Bar:
    """One variant: its name, whether it is stn-infer's, its speedup (None: there is none) and what stands behind it."""

    name: str
    ours: bool
    ratio: Interval | None
    figure: str
    time: str = ""

    @property
    def reach(self) -> float:
        """The largest number that is drawn."""
        return 0.0 if self.ratio is None else max(self.ratio.value, self.ratio.high or 0.0)


@dataclass(frozen=True)
class Panel:
    """Bars under one heading, on one scale with the chart's other panels."""

    heading: str
    bars: tuple[Bar, ...]


def panel(result: BenchResult, model: Model, batch: int, over: str, heading: str = "") -> Panel:
    """A model's variants at one batch size, the fastest first, compared with the variant ``over``."""
    known = names(result, model)
    rows = result.rows(model, batch)
    against = next((row for row in rows if row.variant == over and row.status == "timed"), None)
    timed = sorted((row for row in rows if row.median_ms is not None), key=lambda row: row.median_ms or 0.0)
    failed = [row for row in rows if row.status == "failed"]
    return Panel(heading, tuple(_bar(row, against, known[row.variant]) for row in (*timed, *failed)))


def _bar(row: Measurement, against: Measurement | None, name: str) -> Bar:
    ratio = None
    if row.median_ms is None:
        return Bar(name, is_ours(row), None, f"{row.status}: not timed")
    if row is against:
        ratio, figure = Interval(1.0, None, None), "1x"
    else:
        ratio = None if against is None else reported(row, against)
        figure = ratio_text(ratio) if ratio else "unstable: no ratio" if against else "nothing to compare with"
    return Bar(name, is_ours(row), ratio, figure, milliseconds(row.median_ms))


def in_page(panels: Sequence[Panel], label: str) -> str:
    """An SVG element as wide as what holds it; ``label`` and the figures are read to who cannot see it."""
    height, body = _drawn(panels)
    return (
        f'<svg class="chart" role="img" aria-label="{text(_read(panels, label))}" width="100%" height="{height}">'
        f"{body}</svg>"
    )


def as_file(panels: Sequence[Panel], label: str, width: int = 720) -> str:
    """The same as an SVG file, on a background of its own, light or dark as the reader's screen is."""
    height, body = _drawn(panels)
    margin = 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" width="{width}" '
        f'height="{height + 2 * margin}" viewBox="0 0 {width} {height + 2 * margin}">'
        f"<title>{text(_read(panels, label))}</title><style>{COLORS}{STYLE}</style>"
        f'<rect width="100%" height="100%" style="fill: var(--page)"/>'
        f'<svg x="{margin}" y="{margin}" width="{width - 2 * margin}" height="{height}">{body}</svg></svg>\n'
    )


def _read(panels: Sequence[Panel], label: str) -> str:
    """All that is drawn, as a sentence."""
    parts = []
    for each in panels:
        bars = "; ".join(f"{bar.name}: {bar.figure}" for bar in each.bars)
        parts.append(f"{each.heading}: {bars}" if each.heading else bars)
    return f"{label}. {'. '.join(parts)}."


def _drawn(panels: Sequence[Panel]) -> tuple[int, str]:
    """The height in pixels, and the elements; places are percentages of the width, so that text keeps its size."""
    reach = max((bar.reach for each in panels for bar in each.bars), default=0.0)
    scale = _SPAN / max(reach, 1.0)
    parts, top = [], 0
    for each in panels:
        if each.heading:
            parts.append(f'<text class="head" x="0" y="{top + 15}">{text(shortened(each.heading, 76))}</text>')
            top += _HEAD
        bottom = top + _ROW * len(each.bars) - (_ROW - 19 - _BAR)
        for index, bar in enumerate(each.bars):
            parts += _row(bar, top + _ROW * index, scale)
        top = bottom + 14
    return max(top - 8, 0), "".join(parts)


def _row(bar: Bar, top: int, scale: float) -> Iterable[str]:
    yield f'<text x="0" y="{top + 13}">{text(shortened(bar.name))}<title>{text(bar.name)}</title></text>'
    if bar.time:
        yield f'<text class="dim time" x="100%" y="{top + 13}" text-anchor="end">{text(bar.time)}</text>'
    high, middle = top + 19, top + 19 + _BAR / 2
    end = 0.0
    if bar.ratio is not None:
        equal = _percent(scale)
        kind = "ours" if bar.ours else "theirs"
        width = _percent(bar.ratio.value * scale)
        yield f'<rect class="bar {kind}" x="0" y="{high}" width="{width}" height="{_BAR}" rx="2"/>'
        yield f'<line class="equal" x1="{equal}" x2="{equal}" y1="{high - 3}" y2="{high + _BAR + 3}"/>'
        end = max(bar.reach, 1.0) * scale
        if bar.ratio.low is not None and bar.ratio.high is not None:
            left, right = _percent(bar.ratio.low * scale), _percent(bar.ratio.high * scale)
            yield f'<line class="interval" x1="{left}" x2="{right}" y1="{middle:g}" y2="{middle:g}"/>'
            for at in (left, right):
                yield f'<line class="interval" x1="{at}" x2="{at}" y1="{middle - 4:g}" y2="{middle + 4:g}"/>'
    yield f'<text x="{_percent(end)}" dx="{8 if end else 0}" y="{high + 12}">{text(bar.figure)}</text>'


def _percent(value: float) -> str:
    return f"{value:.2f}%"
