"""``stn-infer bench``: a latency table."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from stn_infer.cli import options
from stn_infer.errors import ModelError, UsageError, VerificationError


def _batch_sizes(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(text) for text in value.split(","))
    except ValueError:
        raise UsageError(f"--batch-sizes takes whole numbers joined by commas, such as 1,64; given {value!r}") from None


@click.command()
@options.model_argument
@click.option(
    "--batch-sizes",
    default="1,64",
    show_default=True,
    callback=_batch_sizes,
    metavar="N,...",
    help="Samples a call, each measured on its own.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    help="eager, compile, ort-plain, ort or ort-fused; repeat it.  [all]",
)
@options.device_option
@options.threads_option
@click.option("--source", help="What an ONNX file was exported from; known already for shipped models.")
@options.weights_option
@options.input_shape_option
@click.option("--samples", type=click.IntRange(min=1), default=96, show_default=True, help="Calls timed a variant.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Stop timing a batch size after this long; three rounds are always made.",
)
@options.seed_option
@options.output_option("Write the result with all samples to this JSON file.", required=False)
def command(
    model: str,
    batch_sizes: tuple[int, ...],
    variants: tuple[str, ...],
    device: str,
    threads: int | None,
    source: str | None,
    weights: Path | None,
    input_shape: tuple[str, ...],
    samples: int,
    seconds: float,
    seed: int,
    output: Path | None,
) -> None:
    """Measure MODEL in every runtime there is, verified first and interleaved in one process.

    MODEL is a shipped model's name, a recipe (.toml), a .pt2, package.module:factory, or an ONNX file that export
    wrote. Exit code 3 when a variant's outputs differ from float64 PyTorch's; it is not timed then.
    """
    from rich.console import Console

    from stn_infer.benchmarking import Plan, bench
    from stn_infer.benchmarking.table import render
    from stn_infer.files import check_writable, write_atomically
    from stn_infer.sources import parse_input_shapes

    if output is not None:
        check_writable(output)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # no terminal, no reason to wrap
    with Console(stderr=True).status("") as status:
        result = bench(
            model,
            batch_sizes=batch_sizes,
            variants=variants or None,
            device=device,
            threads=threads,
            source=source,
            weights=weights,
            input_shapes=parse_input_shapes(input_shape) or None,
            plan=Plan(samples=samples, seconds=seconds, seed=seed),
            command=shlex.join(["stn-infer", *sys.argv[1:]]),
            say=status.update,
        )
    console.print(render(result))
    if output is not None:
        write_atomically(output, result.to_json().encode())
        click.echo(f"wrote {output}")
    if all(measurement.status == "unavailable" for measurement in result.measurements):
        raise ModelError(f"nothing could be timed; {result.measurements[0].variant}: {result.measurements[0].reason}")
    failed = [measurement for measurement in result.measurements if measurement.status == "failed"]
    if failed:
        raise VerificationError(f"{failed[0].variant} at batch {failed[0].batch_size}: {failed[0].reason}")
