"""``bench``: open every variant, verify it, time them in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.benchmarking.machine import cpu_share_in_use, this_machine, versions
from stn_infer.benchmarking.result import BenchResult, Measurement
from stn_infer.benchmarking.timing import Plan, interleave
from stn_infer.benchmarking.variants import VARIANTS, Variant, open_variants
from stn_infer.errors import StnInferError, UsageError

if TYPE_CHECKING:
    from stn_infer.benchmarking.check import Expected
    from stn_infer.reference import Reference
    from stn_infer.sources import LoadedModel

Say = Callable[[str], None]

# Of all cores' time, by others: above this, times are not to be quoted.
_DISTURBED = 0.1


def bench(
    model: str | Path,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    variants: Sequence[str] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    source: str | None = None,
    weights: Path | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    tolerance: float | None = None,
    plan: Plan | None = None,
    command: str = "",
    say: Say = lambda text: None,
) -> BenchResult:
    """Measure a model's latency in every way it can be run, after verifying each against eager PyTorch in float64.

    Times are from arrays in main memory to arrays in main memory. All variants of a batch size get the same inputs and
    take turns in one process. A variant whose outputs are off is not timed.

    Args:
        model: any source that ``export`` takes, or an ``.onnx`` file that it wrote.
        batch_sizes: samples a call, each measured on its own.
        variants: names out of :data:`~stn_infer.benchmarking.variants.VARIANTS`; None: all.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: threads inside one operator; None: each runtime's own choice.
        source: for an ``.onnx`` file, what it was exported from; None: what its metadata names.
        weights, input_shapes: as for ``export``.
        tolerance: on each output's error over its scale; None: 1e-5, or 1e-4 where float64 is not possible.
        plan: how samples are taken; None: the default :class:`~stn_infer.benchmarking.timing.Plan`.
        command: written into the result.
        say: told what is being done, for a progress display.

    Raises:
        UsageError: an unknown variant, a batch size below 1, or an ``.onnx`` file of unknown source.
        SourceError, ModelError: the model cannot be had.
    """
    from stn_infer.reference import Reference
    from stn_infer.verification import TOLERANCE, TOLERANCE_FP32_REFERENCE

    names = _checked(variants, batch_sizes)
    say(f"loading {model}")
    loaded, portable = _load(str(model), source, weights, input_shapes)
    reference = Reference(loaded.module, loaded.input_shapes)
    limit = tolerance or (TOLERANCE if reference.dtype == "float64" else TOLERANCE_FP32_REFERENCE)
    notes = [note for note in (loaded.note,) if note]
    say("opening " + ", ".join(names))
    opened = open_variants(names, loaded, portable, device, threads)
    chosen = plan or Plan()
    measurements: list[Measurement] = []
    shares: list[float] = []
    for batch_size in batch_sizes:
        expected, described = _expect(loaded, reference, batch_size, chosen.seed)
        say(f"batch {batch_size}")
        shares.append(cpu_share_in_use())
        measurements += _measure(opened, expected, batch_size, limit, chosen)
    for variant in opened:
        if variant.backend is not None:
            variant.backend.close()
    if max(shares) > _DISTURBED:
        notes.append(f"others used up to {max(shares):.0%} of the cores: measure again when the machine is idle")
    if any(not measurement.settled for measurement in measurements if measurement.status == "timed"):
        notes.append(f"a warm-up did not become stable in {chosen.warmup_seconds:g} s: see 'settled' in the JSON")
    return BenchResult(
        model=loaded.name,
        device=device,
        inputs=described,
        reference=reference.dtype,
        tolerance=limit,
        plan=chosen,
        machine=this_machine(),
        versions=versions(),
        cpu_share_in_use=max(shares),
        measurements=tuple(measurements),
        notes=tuple(notes),
        command=command,
    )


def _checked(variants: Sequence[str] | None, batch_sizes: Sequence[int]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(VARIANTS if variants is None else variants))
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        raise UsageError(f"variants are {', '.join(VARIANTS)}; given {', '.join(unknown) or 'none'}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(
            f"batch sizes are whole numbers of at least 1, given {', '.join(map(str, batch_sizes)) or 'none'}"
        )
    return names


def _load(
    model: str, source: str | None, weights: Path | None, shapes: Sequence[tuple[int, ...]] | None
) -> tuple[LoadedModel, Path | None]:
    """The model in PyTorch, and the portable file if that is what was given."""
    from stn_infer.sources import load_source

    if not model.endswith(".onnx"):
        if source is not None:
            raise UsageError(f"--source goes with an ONNX file; {model} is a source itself")
        return load_source(model, weights=weights, input_shapes=shapes), None
    from stn_infer.backends.ort import OrtBackend

    path = Path(model)
    backend = OrtBackend(path, threads=1)
    source = source or backend.metadata.source
    if not source:
        raise UsageError(f"{model} does not say what it was exported from; name it with --source SOURCE")
    if shapes is None and all(axis is not None for spec in backend.inputs for axis in spec.shape[1:]):
        shapes = [tuple(axis for axis in spec.shape[1:] if axis is not None) for spec in backend.inputs]
    backend.close()
    return load_source(source, weights=weights, input_shapes=shapes), path


def _expect(loaded: LoadedModel, reference: Reference, batch_size: int, seed: int) -> tuple[Expected, str]:
    from stn_infer.benchmarking.check import Expected, bench_inputs

    inputs, described = bench_inputs(loaded, batch_size, seed)
    outputs, samplings = reference.run(inputs)
    return Expected(inputs, tuple(outputs), any(call.mode == "nearest" for call in samplings)), described


def _measure(
    variants: Sequence[Variant], expected: Expected, batch_size: int, limit: float, plan: Plan
) -> list[Measurement]:
    """One measurement for each variant: those that give the reference's outputs are timed, in turns."""
    untimed: dict[str, Measurement] = {}
    errors: dict[str, float] = {}
    calls: dict[str, Callable[[], object]] = {}
    for variant in variants:
        if variant.backend is None:
            untimed[variant.name] = Measurement(variant.name, batch_size, "unavailable", variant.reason)
            continue
        backend = variant.backend
        feeds = dict(zip((spec.name for spec in backend.inputs), expected.inputs, strict=True))
        try:
            error = expected.error(list(backend.run(feeds).values()))
        except StnInferError as failure:
            untimed[variant.name] = Measurement(variant.name, batch_size, "unavailable", str(failure))
            continue
        if not error <= limit:
            reason = f"outputs are off by {error:.1e} of their scale, expected at most {limit:.0e}: not timed"
            untimed[variant.name] = Measurement(variant.name, batch_size, "failed", reason, error)
            continue
        errors[variant.name] = error
        calls[variant.name] = partial(backend.run, feeds)
    gc.collect()
    gc.disable()
    try:
        timings = interleave(calls, plan)
    finally:
        gc.enable()
    return [
        untimed.get(variant.name)
        or Measurement(
            variant.name,
            batch_size,
            "timed",
            error=errors[variant.name],
            samples_ms=timings[variant.name].samples_ms,
            warmup_calls=timings[variant.name].warmup_calls,
            settled=timings[variant.name].settled,
            runs_on=_describe(variant),
        )
        for variant in variants
    ]


def _describe(variant: Variant) -> tuple[tuple[str, str], ...]:
    return () if variant.backend is None else tuple(sorted(variant.backend.describe().items()))
