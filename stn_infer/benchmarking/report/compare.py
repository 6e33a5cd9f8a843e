"""Two results side by side: which rows are significantly slower now, and by more than a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stn_infer.benchmarking.record import CaseKey, Measurement
from stn_infer.benchmarking.result import CALIBRATION, BenchResult, case_name
from stn_infer.benchmarking.stats import FEWEST_ROUNDS, Interval, ratio_of_ratios, unpaired_ratio
from stn_infer.errors import UsageError

Verdict = Literal["slower", "faster", "same", "unknown", "gone", "new"]

#: A smaller change is not flagged, even where it is significant: another build has another memory layout.
THRESHOLD = 0.05

# Keys of a model's hashes, and what differs where they do.
_IDENTITY = {
    "weights": "other weights",
    "file": "another ONNX file",
    "plugin library": "another plugin library",
    CALIBRATION: "other INT8 calibration data",
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row of both results.

    Attributes:
        model, precision, batch_size, variant: which.
        before_ms, after_ms: medians; None where it was not timed.
        ratio: time after / time before; with ``relative_to``, of the ratios to that variant. None where there is none.
        verdict: ``slower`` and ``faster``: the interval lies beyond 1 and the change is above the threshold;
            ``unknown``: too few rounds for an interval.
        remark: what lowers confidence in it.
    """

    model: str
    precision: str
    batch_size: int
    variant: str
    before_ms: float | None
    after_ms: float | None
    ratio: Interval | None
    verdict: Verdict
    remark: str = ""

    @property
    def case_key(self) -> CaseKey:
        """What identifies its model in a result."""
        return self.model, self.precision


@dataclass(frozen=True)
class ResultComparison:
    """All rows, and what makes the two results hard to compare."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    threshold: float
    relative_to: str | None

    @property
    def regressions(self) -> tuple[Change, ...]:
        """Rows that are slower, or that were timed before and are not now."""
        return tuple(change for change in self.changes if change.verdict in ("slower", "gone"))


def compare(
    before: BenchResult, after: BenchResult, *, threshold: float = THRESHOLD, relative_to: str | None = None
) -> ResultComparison:
    """Compare two results row by row.

    Args:
        before, after: results.
        threshold: the smallest change that is flagged, 0.05 being 5 %.
        relative_to: a variant; each row is taken as a ratio to that variant's in its own result, which cancels what
            is due to the machine or the hour. None: times themselves.

    Raises:
        UsageError: they have no row in common, were measured at different boundaries or caches, or one of them lacks
            ``relative_to``.
    """
    old = {row.key: row for row in before.measurements}
    new = {row.key: row for row in after.measurements}
    if not set(old) & set(new):
        raise UsageError("the two results have no row in common: another model, batch size or variant in each")
    if not any(_is_timed(row) for row in (*old.values(), *new.values()) if row.variant != relative_to):
        raise UsageError(
            f"expected timed rows{f' other than {relative_to}' if relative_to else ''}; neither result has one"
        )
    keys = [key for key in dict.fromkeys((*old, *new)) if key[3] != relative_to]
    changes = [_change(old, new, key, threshold, relative_to) for key in keys]
    kept = tuple(change for change in changes if change is not None)
    return ResultComparison(kept, _warnings(before, after), threshold, relative_to)


Key = tuple[str, str, int, str]
Rows = dict[Key, Measurement]


def _change(old: Rows, new: Rows, key: Key, threshold: float, relative_to: str | None) -> Change | None:
    before, after = old.get(key), new.get(key)
    was, now = _is_timed(before), _is_timed(after)
    if not was and not now:
        return None
    model, precision, batch_size, variant = key
    ratio: Interval | None = None
    if was and now and before is not None and after is not None:
        if relative_to is None:
            ratio = unpaired_ratio(after.by_round, before.by_round)
        else:
            ratio = ratio_of_ratios(_pair(new, key, relative_to), _pair(old, key, relative_to))
        verdict = _verdict(ratio, threshold)
        both = (("A", before), ("B", after))
        remark = ", ".join(f"{when}: {'; '.join(row.flags)}" for when, row in both if row.flags)
    else:
        verdict = "gone" if was else "new"
        missing = after if was else before
        remark = missing.reason if missing is not None else "it is not in the other result"
    return Change(
        model=model,
        precision=precision,
        batch_size=batch_size,
        variant=variant,
        before_ms=before.median_ms if before else None,
        after_ms=after.median_ms if after else None,
        ratio=ratio,
        verdict=verdict,
        remark=remark,
    )


def _verdict(ratio: Interval, threshold: float) -> Verdict:
    if ratio.low is None:
        return "unknown"
    if not ratio.excludes_one:
        return "same"
    if ratio.value > 1 + threshold:
        return "slower"
    return "faster" if ratio.value < 1 / (1 + threshold) else "same"


def _pair(rows: Rows, key: Key, relative_to: str) -> tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]:
    """A row's samples and those of the variant it is taken relative to, in the rounds that both have."""
    other = rows.get((key[0], key[1], key[2], relative_to))
    if other is None or not _is_timed(other):
        raise UsageError(f"{relative_to} at batch {key[2]} was not timed in both results; compare with another variant")
    mine = {each.round: each.samples_ms for each in rows[key].rounds}
    shared = [(mine[each.round], each.samples_ms) for each in other.rounds if each.round in mine]
    return [a for a, _ in shared], [b for _, b in shared]


def _is_timed(row: Measurement | None) -> bool:
    return row is not None and row.status == "timed"


def _warnings(before: BenchResult, after: BenchResult) -> tuple[str, ...]:
    found = []
    if before.machine != after.machine:
        found.append(f"another machine: A on {_machine(before)}, B on {_machine(after)}")
    for what in ("threads", "device"):
        one, two = getattr(before.request, what), getattr(after.request, what)
        if one != two:
            found.append(f"another {what.removesuffix('s')} setting: {one} in A, {two} in B")
    if before.request.method.boundary != after.request.method.boundary:
        raise UsageError(
            f"A was measured at the {before.request.method.boundary} boundary, B at "
            f"{after.request.method.boundary}: these are never compared"
        )
    if before.request.method.l2 != after.request.method.l2:
        raise UsageError(
            f"A was measured with the level-2 cache {before.request.method.l2}, B with it "
            f"{after.request.method.l2}: these are never compared"
        )
    if any(it.request.method.concurrency or it.request.method.rates for it in (before, after)):
        found.append("figures under load are not compared; `bench report` shows each result's")
    others = {model.key: model for model in after.models}
    for model in before.models:
        other = others.get(model.key)
        if other is None:
            continue
        name = case_name(list(others), model.key) or model.name
        shared = set(model.inputs_sha256) & set(other.inputs_sha256)
        if any(model.inputs_sha256[batch] != other.inputs_sha256[batch] for batch in shared):
            found.append(f"{name}: other inputs in A than in B")
        for what, words in _IDENTITY.items():
            hashes = model.sha256.get(what), other.sha256.get(what)
            if None not in hashes and hashes[0] != hashes[1]:  # older files lack some of them
                found.append(f"{name}: {words} in A than in B")
    changed = [
        f"{name} {before.versions.get(name, 'none')} -> {after.versions.get(name, 'none')}"
        for name in sorted({*before.versions, *after.versions})
        if before.versions.get(name) != after.versions.get(name)
    ]
    if changed:
        found.append("versions: " + ", ".join(changed))
    for name, result in (("A", before), ("B", after)):
        if result.request.method.rounds < FEWEST_ROUNDS:
            found.append(f"{name} has {result.request.method.rounds} rounds; an interval needs {FEWEST_ROUNDS}")
        if not result.complete:
            found.append(f"{name} is not finished")
    return tuple(found)


def _machine(result: BenchResult) -> str:
    gpus = "".join(f", {gpu}" for gpu in result.machine.gpus)
    return f"{result.machine.cpu}, {result.machine.cores} cores{gpus}"
