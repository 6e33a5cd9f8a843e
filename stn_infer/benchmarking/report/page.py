"""A result as one HTML page: verdict, chart, tables, environment, command; all else is folded away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stn_infer.benchmarking.report import chart, tables
from stn_infer.benchmarking.report.names import names
from stn_infer.benchmarking.report.notes import lines_below
from stn_infer.benchmarking.report.tables import Table
from stn_infer.benchmarking.report.verdict import verdict, verdict_of
from stn_infer.benchmarking.request import BOUNDARIES
from stn_infer.benchmarking.result import BenchResult, Model
from stn_infer.printing import counted
from stn_infer.web import document, text

_STYLE = """
.verdict { font-size: 1.15rem; border-left: .25rem solid var(--ours); padding-left: .8rem; margin: 1rem 0 }
figure { margin: 1rem 0; max-width: 44rem } figcaption { color: var(--dim); font-size: .875rem; margin-bottom: .5rem }
.key { display: inline-block; width: .75rem; height: .75rem; border-radius: .15rem; background: var(--theirs) }
.key.ours { background: var(--ours) }
.scroll { overflow-x: auto; margin: .6rem 0 } .scroll * { overflow-wrap: normal }
table { border-collapse: collapse; font-size: .875rem } caption { text-align: left; font-weight: bold }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { color: var(--dim); font-weight: normal; white-space: normal; vertical-align: bottom } .word { text-align: left }
td.word { min-width: 9rem; white-space: normal; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1rem; margin: .4rem 0 }
dt { color: var(--dim) } dd { margin: 0; min-width: 0 }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; user-select: all;
  white-space: pre-wrap } pre code { background: none; padding: 0 }
details { margin: .6rem 0 }
.plot { overflow-x: auto; max-width: none; background: #fff } .plot svg { min-width: 40rem }
@media print { figure, dl, pre { break-inside: avoid-page } .scroll, .plot { overflow: visible }
  table { font-size: 8pt } th, td { padding: .1rem .3rem; white-space: normal }
  .plot svg { min-width: 0; width: 100% } }
"""


def page(result: BenchResult) -> str:
    """One HTML page that needs no other file and runs no script.

    Raises:
        MissingDependencyError: matplotlib is missing, which draws the folded plots.
    """
    parts = [f"<h1>{text(title(result))}</h1>", _verdict(verdict(result))]
    for model in result.models:
        parts += _model(result, model)
    parts += ["<h2>Environment</h2>", "<dl>"]
    parts += [f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in environment(result)]
    parts.append("</dl>")
    if result.command:
        parts += ["<h2>Command</h2>", f'<pre tabindex="0"><code>{text(result.command)}</code></pre>']
    notes = "".join(f"<li>{text(line)}</li>" for line in lines_below(result))
    parts.append(f"<details><summary>Notes</summary><ul>{notes}</ul></details>")
    return document(f"stn-infer bench: {title(result)}", "\n".join(parts), chart.STYLE + _STYLE)


def title(result: BenchResult) -> str:
    """What was benchmarked."""
    given = [model.name for model in result.models]
    return f"Benchmark: {', '.join(given) if len(given) <= 3 else f'{len(given)} models'}"


def charted(result: BenchResult) -> tuple[chart.Panel, ...]:
    """Every model that has figures at its largest batch size, for the chart beside a Markdown file."""
    found = []
    for model in result.models:
        batch = max(model.case.batch_sizes)
        over = tables.compared_with(result, model)
        heading = f"{model.name}, batch {batch}, speedup over {names(result, model).get(over, over)}"
        found.append(chart.panel(result, model, batch, over, heading))
    return tuple(each for each in found if any(bar.ratio for bar in each.bars))


def chart_label(result: BenchResult) -> str:
    """What a chart shows, for who cannot see it."""
    return f"{title(result)}: speedups with 95 % confidence intervals"


def environment(result: BenchResult) -> list[tuple[str, str]]:
    """Where, with what and how it was measured: names and values."""
    machine, request = result.machine, result.request
    method = request.method
    rows = [
        ("Processor", f"{machine.cpu}, {counted(machine.cores, 'core')}, {machine.memory_gib:g} GiB of memory"),
        ("GPU", ", ".join(machine.gpus) if request.device != "cpu" else ""),
        ("Device", f"{request.device}, {counted(request.threads, 'thread')}"),
        ("System", machine.system),
        ("Versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
        ("Settings", ", ".join(f"{name}: {value}" for name, value in result.settings.items())),
        ("A call", f"{method.boundary}: {BOUNDARIES[method.boundary]}"),
        (
            "Method",
            f"{counted(method.rounds, 'round')}, at least {method.seconds:g} s and {method.samples} calls per row",
        ),
        ("Measured", result.created),
    ]
    return [(name, value) for name, value in rows if value]


def built(model: Model) -> list[str]:
    """How long the model's files took."""
    made = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in model.build_s.items())
    return [f"Files written before timing: {made}."] if made else []


def _verdict(sentences: list[str]) -> str:
    return f'<p class="verdict">{text(" ".join(sentences))}</p>'


def _model(result: BenchResult, model: Model) -> Iterator[str]:
    """A section: its verdict where there are several models, the chart, the table, and what is folded away."""
    from stn_infer.benchmarking.report.plots import plots

    main = tables.latencies(result, model)
    if len(result.models) > 1:
        yield f"<h2>{text(main.caption)}</h2>"
        yield _verdict(verdict_of(result, model))
    *others, largest = sorted(model.case.batch_sizes)
    yield _chart(result, model, largest)
    yield _table(replace(main, caption=""), main.caption, names(result, model))
    smaller = [_chart(result, model, batch) for batch in reversed(others)]
    if any(smaller):
        yield f"<details><summary>Speedups at other batch sizes</summary>{''.join(smaller)}</details>"
    drawn = "".join(f'<figure class="plot" tabindex="0">{svg}</figure>' for svg in plots(result, model))
    if drawn:
        yield f"<details><summary>Latency, throughput and percentiles</summary>{drawn}</details>"
    for table in tables.beside(result, model):
        folded = _table(replace(table, caption=""), table.caption)
        yield f"<details><summary>{text(table.caption)}</summary>{folded}</details>"
    yield from (f'<p class="dim">{text(line)}</p>' for line in built(model))


def _chart(result: BenchResult, model: Model, batch: int) -> str:
    over = tables.compared_with(result, model)
    panel = chart.panel(result, model, batch, over)
    if not panel.bars:
        return ""
    what = f"Speedup over {names(result, model).get(over, over)} at batch {batch}"
    legend = '<span class="key ours"></span> stn-infer, <span class="key"></span> others'
    how = "lines: 95 % confidence intervals; dashed: 1x; right: median time of a call"
    caption = f"<figcaption>{text(what)}. {legend}; {how}.</figcaption>"
    return f"<figure>{caption}{chart.in_page([panel], what)}</figure>"


def _table(table: Table, label: str, known: dict[str, str] | None = None) -> str:
    """A table that scrolls by itself where it is wider than the page."""
    kinds = ["" if table.is_figure(name) else ' class="word"' for name in table.headings]
    head = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(table.headings, kinds, strict=True))
    lines = []
    for row in table.rows:
        shown = [
            _variant(cell, known) if known and name == "variant" else text(cell)
            for cell, name in zip(row, table.headings, strict=True)
        ]
        cells = [f"<td{kind}>{cell}</td>" for cell, kind in zip(shown, kinds, strict=True)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    rows = "\n".join(lines)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _variant(cell: str, known: dict[str, str]) -> str:
    """A variant's name, and below it the key by which ``--variant`` knows it."""
    key = cell.removesuffix(" *")
    return f"{text(known[key])}{cell[len(key) :]}<br><code>{text(key)}</code>"
