from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_every_peer_is_verified_and_timed(tmp_path: Path) -> None:
    """Tiny sizes, in this process: whether others' tools give what ours gives, not how fast they are."""
    for package in ("kornia", "onnxslim", "onnxsim"):
        pytest.importorskip(package, reason=f"{package} is not installed: the extra 'peers'")
    from stn_infer.benchmarking.method import Method
    from stn_infer.benchmarking.result import Case
    from stn_infer.benchmarking.run import make_request
    from stn_infer.benchmarking.session import run_request

    compare = importlib.import_module("benchmarks.peers.compare")
    case = Case("benchmarks.peers.warps:warp_digits", input_shapes=((1, 12, 12), (6,)), batch_sizes=(3,))
    method = Method(rounds=1, seconds=0.01, samples=3, turns=1, warmup_seconds=0.01, warmup_limit=0.1, isolate=False)
    peers = [name for name in compare.PEERS if name != "compile"]
    result = run_request(make_request((case,), ("ort", *peers), "cpu", 1, None, method))
    status = {row.variant: (row.status, row.reason) for row in result.measurements}
    assert set(status) == {"ort", *peers}
    assert {found for found, _ in status.values()} == {"timed"}, status

    rates = compare.measure_rates(1, 1 << 16)
    least = compare.bound(case, result.models[0].name, 3, rates)
    assert least.bytes == 4 * (2 * 3 * 12 * 12 + 3 * 6)
    assert least.by == "bytes" and least.ms > 0
    text = compare.table(result, [least])
    assert "| kornia |" in text and text.count("x |") == len(peers)
    assert text.count("(ort) |") == len(compare.PEERS)  # the fastest of ours is named


def test_a_variant_of_ones_own_that_is_not_there_says_so() -> None:
    from stn_infer.benchmarking.variants import open_variant
    from stn_infer.errors import ModelError

    with pytest.raises(ModelError, match=r"variant benchmarks\.peers\.warps:nothing cannot be imported"):
        open_variant("benchmarks.peers.warps:nothing", None, "cpu", 1, None)  # type: ignore[arg-type]
    assert "benchmarks.peers.warps" in sys.modules
