"""``stn-infer bench``: measure latency; ``bench compare`` and ``bench report`` read the results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from stn_infer.cli import options
from stn_infer.cli.help import Command
from stn_infer.cli.output import echo, emit, table_console, tell
from stn_infer.cli.terminal.completion import complete_files, complete_source, complete_variant
from stn_infer.errors import ModelError, UsageError, VerificationError
from stn_infer.metadata import PRECISIONS, Precision
from stn_infer.progress import step

if TYPE_CHECKING:
    from stn_infer.benchmarking.request import Request
    from stn_infer.benchmarking.result import BenchResult
    from stn_infer.budget import Budget
    from stn_infer.sources.reference import Weights

RESULT = click.Path(path_type=Path, dir_okay=False)
_CASE_OPTIONS = ("batch_sizes", "source", "weights", "input_shapes", "precision", "inputs")
_COMMON = ("json", "verbose", "quiet", "debug")
_BESIDE_RESUME = ("resume", "output", "time_limit", "allow_code", "trial_seconds", "trial_memory", "strict", *_COMMON)
_QUICK_LENGTHS = ("rounds", "seconds", "samples", "turns", "row_limit")


@click.command(
    cls=Command,
    examples=(
        "stn-infer bench compare before.json after.json",
        "stn-infer bench compare before.json after.json --relative-to eager --threshold 10",
    ),
)
@click.argument("before", metavar="A.json", type=RESULT, shell_complete=complete_files(".json"))
@click.argument("after", metavar="B.json", type=RESULT, shell_complete=complete_files(".json"))
@click.option(
    "--threshold",
    type=options.FiniteRange(min=0),
    default=5.0,
    show_default=True,
    help="Smallest change to flag, in %.",
)
@click.option(
    "--relative-to",
    metavar="VARIANT",
    shell_complete=complete_variant,
    help="Compare ratios to this variant instead of times, for results from two machines or from a busy one.",
)
@click.pass_context
def compare(ctx: click.Context, before: Path, after: Path, threshold: float, relative_to: str | None) -> None:
    """Compare two results row by row; exit code 1 when B is slower.

    A row is slower when the 95 % confidence interval of time B / time A lies above 1 and the change is above the
    threshold, or when it was timed in A and not in B.
    """
    from stn_infer.benchmarking.report.compare import compare as compare_results
    from stn_infer.benchmarking.report.tables import changes
    from stn_infer.benchmarking.report.terminal import as_rich
    from stn_infer.benchmarking.result import read_result

    found = compare_results(read_result(before), read_result(after), threshold=threshold / 100, relative_to=relative_to)

    def text() -> None:
        table_console(180).print(as_rich(changes(found, f"{before.name} (A) and {after.name} (B)")))
        if found.regressions:
            names = ", ".join(f"{change.variant} at batch {change.batch_size}" for change in found.regressions)
            echo(f"slower: {names}")

    emit(found, text)
    tell(*(f"warning: {warning}" for warning in found.warnings))
    if found.regressions:
        ctx.exit(1)


@click.command(
    cls=Command,
    examples=(
        "stn-infer bench report result.json -o report",
        "stn-infer bench report benchmarks/results/peers-xeon-2.5ghz-2-cores.json -o peers",
    ),
)
@click.argument("result", metavar="RESULT.json", type=RESULT, shell_complete=complete_files(".json"))
@options.output_option("The folder for report.md, report.csv and report.html.", folder=True)
def report(result: Path, output: Path) -> None:
    """Write RESULT as Markdown, CSV and a self-contained HTML page with plots."""
    from stn_infer.benchmarking.report.files import write_report
    from stn_infer.benchmarking.result import read_result

    paths = write_report(read_result(result), output)
    emit({"paths": paths}, lambda: echo(*(f"wrote {path}" for path in paths)))


class _WithOthers(Command):
    """A command whose first argument may name a subcommand; anything else is SOURCE."""

    others: dict[str, click.Command]

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        other = self.others.get(args[0]) if args else None
        if other is None:
            return super().make_context(info_name, args, parent, **extra)
        return other.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(
    cls=_WithOthers,
    examples=(
        "stn-infer bench st-cnn-affine-rts --quick",
        "stn-infer bench model.onnx --batch-sizes 1,256 -o result.json",
    ),
    epilog="\b\nTwo more forms, each with --help:\n  bench compare A.json B.json\n  bench report RESULT.json -o FOLDER",
)
@click.argument(
    "model",
    metavar="SOURCE",
    required=False,
    callback=options.local_path,
    shell_complete=complete_source("compare", "report"),
)
@options.source_options
@options.original_option
@options.batch_sizes_option("1,64")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    shell_complete=complete_variant,
    metavar="NAME",
    help="Measure only this variant, see --list-variants; repeatable.  [default: all]",
)
@click.option("--list-variants", is_flag=True, help="List the variants and exit.")
@click.option(
    "--quick", is_flag=True, help="Half a minute: fewer variants and rounds, no intervals; not for publication."
)
@options.device_option
@options.threads_option
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Precision of weights and images.",
)
@click.option(
    "--inputs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Your own images, folders or array files, also for INT8 calibration; repeatable.  [default: digits or noise]",
)
@click.option(
    "--boundary",
    type=click.Choice(["host", "device", "end-to-end"]),
    help="What a call spans: arrays to arrays on the host, the device alone, or image files to predictions.  "
    "[default: host]",
)
@click.option(
    "--time-limit",
    type=options.FiniteRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Leave out rounds that do not fit and cut rows short; loading and compiling are not interrupted.",
)
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds, each in a fresh process.  [default: 6]")
@click.option(
    "--separate",
    is_flag=True,
    help="Run each variant of a round in a process of its own, whose idle threads may spin, as in a service.",
)
@click.option("--seconds", type=options.FiniteRange(min=0, min_open=True), help="Minimum time per row.  [default: 3]")
@click.option("--samples", type=click.IntRange(min=1), help="Minimum number of timed calls per row.  [default: 132]")
@click.option(
    "--l2",
    type=click.Choice(["warm", "flushed"]),
    help="State of the GPU's level-2 cache before each call, at the device boundary.  [default: warm]",
)
@click.option(
    "--concurrency",
    callback=options.integers,
    metavar="N,...",
    help="Also measure throughput with N concurrent callers.",
)
@click.option(
    "--rate", "rates", callback=options.numbers, metavar="R,...", help="Also measure latency at R calls per second."
)
@click.option(
    "--tolerance",
    type=options.FiniteRange(min=0, min_open=True),
    help="Largest output error, relative to the output's scale.  [default: by precision]",
)
@options.seed_option
@options.strict_option
@click.option(
    "--suite",
    type=RESULT,
    shell_complete=complete_files(".toml"),
    help="Benchmark the models in this TOML file instead of SOURCE.",
)
@options.trial_options
@click.option(
    "--resume",
    type=RESULT,
    shell_complete=complete_files(".json"),
    help="Resume an interrupted benchmark from its result instead of SOURCE.",
)
@options.output_option("Write the result with all samples to this JSON file after every round.", required=False)
@click.pass_context
def command(
    ctx: click.Context,
    budget: Budget | None,
    model: str | None,
    batch_sizes: tuple[int, ...],
    variants: tuple[str, ...],
    list_variants: bool,
    quick: bool,
    device: str,
    threads: int | None,
    source: str | None,
    weights: Weights | None,
    input_shapes: options.Shapes | None,
    allow_code: bool,
    precision: Precision,
    inputs: tuple[Path, ...],
    boundary: str | None,
    time_limit: float | None,
    rounds: int | None,
    separate: bool,
    seconds: float | None,
    samples: int | None,
    l2: str | None,
    concurrency: tuple[int, ...],
    rates: tuple[float, ...],
    tolerance: float | None,
    seed: int,
    strict: bool,
    suite: Path | None,
    resume: Path | None,
    output: Path | None,
) -> None:
    """Measure latency and throughput in every runtime that is installed.

    Every variant is verified before it is timed, and variants take turns in rounds. Exit code 3 when a variant's
    outputs differ from the reference's; it is not timed then. benchmarks/METHOD.md describes the method.
    """
    from stn_infer.api.bench import check_code, make_request
    from stn_infer.benchmarking.request import QUICK, Method
    from stn_infer.benchmarking.variants.names import VARIANTS

    if list_variants:
        width = max(map(len, VARIANTS))
        emit({"variants": VARIANTS}, lambda: echo(*(f"{name:<{width}}  {what}" for name, what in VARIANTS.items())))
        return
    if sum(given is not None for given in (model, suite, resume)) != 1:
        raise UsageError("bench takes exactly one of SOURCE, --suite FILE and --resume RESULT")
    if resume is not None:
        others = [name for parameter in ctx.command.params if (name := parameter.name or "") not in _BESIDE_RESUME]
        _refuse(ctx, others, "--resume", "the file defines what is measured; start a new benchmark to change it")
        _show(*_resumed(resume, output, allow_code, budget, time_limit, strict))
        return
    given = {"rounds": rounds, "seconds": seconds, "samples": samples, "boundary": boundary, "l2": l2}
    given["separate"] = separate or None  # a suite may ask for it too
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    changes |= {name: value for name, value in (("concurrency", concurrency), ("rates", rates)) if value}
    if _is_given(ctx, "seed"):
        changes["seed"] = seed
    method = QUICK if quick else Method()
    if suite is not None:
        from stn_infer.benchmarking.suite import read_suite
        from stn_infer.files import check_writable

        if output is not None:
            check_writable(output, inputs=(suite,))
        _refuse(ctx, _CASE_OPTIONS, "--suite", "set it in the file")
        found = read_suite(suite, method)
        if not allow_code:
            check_code(suite, found.cases, () if variants else found.variants or ())
        if quick:
            changes = {name: getattr(QUICK, name) for name in _QUICK_LENGTHS} | changes
        # options on the command line take precedence
        cases, method = found.cases, found.method
        device = device if _is_given(ctx, "device") else found.device or "cpu"
        variants, threads = variants or found.variants or (), threads or found.threads
        tolerance = found.tolerance if tolerance is None else tolerance
    else:
        from stn_infer.benchmarking.request import Case, check_batch_sizes

        assert model is not None
        cases = (
            Case(
                model,
                source=source,
                weights=None if weights is None else str(weights),
                input_shapes=input_shapes,
                precision=precision,
                batch_sizes=check_batch_sizes(batch_sizes),
                inputs=tuple(map(str, inputs)) or None,
            ),
        )
    names = variants or (_quick_variants(device) if quick else None)
    request = make_request(cases, names, device, threads, tolerance, replace(method, **changes))
    _show(_measure(request, output, allow_code=allow_code, budget=budget, time_limit=time_limit, strict=strict), output)


command.others = {"compare": compare, "report": report}


def _is_given(ctx: click.Context, name: str) -> bool:
    """Whether the option is on the command line and not a default."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _refuse(ctx: click.Context, names: Iterable[str], beside: str, advice: str) -> None:
    for parameter in ctx.command.params:
        if parameter.name in names and parameter.opts and _is_given(ctx, parameter.name):
            raise UsageError(f"{parameter.opts[0]} has no effect with {beside}: {advice}")


def _quick_variants(device: str) -> tuple[str, ...]:
    """The variants that ``--quick`` measures; prints those that it omits."""
    from stn_infer.benchmarking.variants.names import VARIANTS, possible, quick_variants

    names = quick_variants(device)
    omitted = [name for name in possible(tuple(VARIANTS), device) if name not in names]
    tell(f"--quick omits {', '.join(omitted)}; add one with --variant")
    return names


def _resumed(
    path: Path,
    output: Path | None,
    allow_code: bool,
    budget: Budget | None,
    time_limit: float | None,
    strict: bool,
) -> tuple[BenchResult, Path]:
    from stn_infer.api.bench import check_code
    from stn_infer.benchmarking.result import read_result

    earlier = read_result(path)
    if not allow_code:
        check_code(path, earlier.request.cases, earlier.request.variants)
    target = output or path
    found = _measure(
        earlier.request, target, earlier, allow_code=allow_code, budget=budget, time_limit=time_limit, strict=strict
    )
    return found, target


def _measure(
    request: Request,
    output: Path | None,
    earlier: BenchResult | None = None,
    *,
    allow_code: bool,
    budget: Budget | None,
    time_limit: float | None,
    strict: bool,
) -> BenchResult:
    """Print an estimate of the duration, then measure."""
    from stn_infer.api.bench import measure
    from stn_infer.benchmarking.harness.session import describe_request

    limited = "" if time_limit is None else f"; within about {time_limit:g} s, with fewer rounds and samples if need be"
    tell(f"{describe_request(request, earlier)}{limited}")
    command = earlier.command if earlier else shlex.join(["stn-infer", *sys.argv[1:]])
    before = _written(output)
    try:
        return measure(
            request,
            output=output,
            earlier=earlier,
            command=command,
            say=step,
            time_limit=time_limit,
            allow_code=allow_code,
            budget=budget,
            strict=strict,
        )
    except KeyboardInterrupt:
        if output is not None and (earlier is not None or _written(output) != before):
            echo(f"the finished rounds are in {output}; resume with: stn-infer bench --resume {output}", err=True)
        raise


def _written(path: Path | None) -> int:
    """The time of a file's last change; 0 if it does not exist."""
    return path.stat().st_mtime_ns if path is not None and path.exists() else 0


def _show(result: BenchResult, output: Path | None) -> None:
    """Print the table; raise an error if a variant failed, or if nothing could be timed."""
    from stn_infer.benchmarking.report.terminal import render

    def text() -> None:
        table_console(180).print(render(result))
        if output is not None:
            echo(f"wrote {output}")

    emit(result, text)
    if all(row.status == "unavailable" for row in result.measurements):
        raise ModelError(f"nothing could be timed; {result.measurements[0].variant}: {result.measurements[0].reason}")
    failed = [row for row in result.measurements if row.status == "failed"]
    if failed:
        raise VerificationError(f"{failed[0].variant} at batch {failed[0].batch_size}: {failed[0].reason}")
