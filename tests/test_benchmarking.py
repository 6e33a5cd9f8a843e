"""bench: verification comes before timing, whatever cannot be had is named, and the JSON holds every sample."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

from stn_infer.benchmarking import BenchResult, Plan, bench
from stn_infer.benchmarking import variants as variants_module
from stn_infer.benchmarking.check import Expected, bench_inputs
from stn_infer.benchmarking.machine import cpu_share_in_use, this_machine, versions
from stn_infer.benchmarking.table import render
from stn_infer.errors import MissingDependencyError, ModelError, UsageError, VerificationError
from stn_infer.metadata import ModelMetadata, Preprocess
from stn_infer.sources import LoadedModel

QUICK = Plan(samples=6, burst=2, seconds=5, warmup_seconds=0.1)


class Tiny(nn.Module):
    """A spatial transformer with hardly anything around it."""

    def __init__(self) -> None:
        super().__init__()
        self.localisation = nn.Linear(64, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = self.localisation(x.flatten(1)).unflatten(1, (2, 3))
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False).mean((2, 3))


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


TINY = f"{__name__}:tiny"


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return bench(TINY, batch_sizes=(1, 3), variants=("eager", "ort-plain", "ort"), input_shapes=[(1, 8, 8)], plan=QUICK)


def test_every_variant_is_verified_and_timed_at_each_batch_size(result: BenchResult) -> None:
    assert result.passed
    assert [(row.variant, row.batch_size, row.status) for row in result.measurements] == [
        (variant, batch, "timed") for batch in (1, 3) for variant in ("eager", "ort-plain", "ort")
    ]
    for row in result.measurements:
        assert row.error is not None and row.error <= result.tolerance == 1e-5
        assert len(row.samples_ms) == 6 and min(row.samples_ms) > 0
        assert row.p90_ms is None
        assert row.throughput == pytest.approx(row.batch_size / row.median_ms * 1e3)
    assert result.reference == "float64"
    assert result.inputs == "handwritten digits"


def test_json_holds_the_samples_and_where_they_come_from(result: BenchResult) -> None:
    fields = json.loads(result.to_json())
    assert next(iter(fields)) == "schema_version" and fields["schema_version"] == 1
    assert fields["machine"]["cores"] >= 1 and fields["versions"]["torch"]
    assert fields["plan"]["samples"] == 6
    first = fields["measurements"][0]
    assert first["samples_ms"] == list(result.measurements[0].samples_ms)
    assert first["median_ms"] == result.measurements[0].median_ms
    assert first["runs_on"]["runtime"] == "PyTorch"


def test_the_table_shows_each_row_and_the_comparison(result: BenchResult) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(result))
    text = console.export_text()
    assert text.count("ort-plain") == 3  # two rows, one explanation
    assert "1.00x" in text
    assert "verified against float64 eager to 1e-05" in text


def test_a_variant_that_computes_something_else_gets_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(Tiny):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1e-3

    def wrong(loaded: LoadedModel, device: str, threads: int | None, compile: bool) -> object:
        from stn_infer.backends.eager import EagerBackend

        module = Off()
        module.load_state_dict(loaded.module.state_dict())
        return EagerBackend(LoadedModel("off", module.eval(), loaded.input_shapes, ModelMetadata(), "factory"))

    monkeypatch.setattr(variants_module, "_torch", wrong)
    off = bench(TINY, batch_sizes=(2,), variants=("eager", "ort-plain"), input_shapes=[(1, 8, 8)], plan=QUICK)
    assert not off.passed
    eager = off.get("eager", 2)
    assert (eager.status, eager.samples_ms, eager.median_ms) == ("failed", (), None)
    assert eager.error == pytest.approx(1e-3, rel=1e-2)
    assert "expected at most 1e-05" in eager.reason
    assert off.get("ort-plain", 2).status == "timed"


def test_what_is_not_there_is_listed_with_its_reason() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    nothing = bench(TINY, batch_sizes=(1,), variants=("eager",), device="cuda", input_shapes=[(1, 8, 8)], plan=QUICK)
    assert nothing.measurements[0].status == "unavailable"
    assert "this PyTorch" in nothing.measurements[0].reason
    assert nothing.passed


def test_wrong_arguments_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="variants are eager, compile, ort-plain, ort, ort-fused; given tvm"):
        bench(TINY, variants=("tvm",), input_shapes=[(1, 8, 8)])
    with pytest.raises(UsageError, match="at least 1, given 0"):
        bench(TINY, batch_sizes=(0,), input_shapes=[(1, 8, 8)])
    with pytest.raises(UsageError, match="--source goes with an ONNX file"):
        bench(TINY, source="cnn", input_shapes=[(1, 8, 8)])


def test_an_onnx_file_of_unknown_source_asks_for_it(tmp_path: Path) -> None:
    from stn_infer.graph.export import export_plain

    path = tmp_path / "tiny.onnx"
    path.write_bytes(export_plain(tiny().eval(), [(1, 8, 8)]).SerializeToString())
    with pytest.raises(UsageError, match="--source SOURCE"):
        bench(path)
    known = bench(path, source=TINY, batch_sizes=(1,), variants=("ort",), plan=QUICK)
    assert known.get("ort", 1).status == "timed"


def test_expected_measures_the_error_over_the_scale() -> None:
    wanted = np.array([[1.0, -4.0], [2.0, np.nan]])
    expected = Expected((), (wanted,), may_flip=False)
    assert expected.error([wanted]) == 0
    assert expected.error([wanted + 0.1]) == pytest.approx(0.1 / 4)
    assert expected.error([np.nan_to_num(wanted)]) == np.inf
    assert expected.error([wanted[:1]]) == np.inf
    assert expected.error([]) == np.inf
    assert expected.error([wanted, wanted]) == 0


def test_a_nearest_sampler_may_flip_a_few_samples() -> None:
    wanted = np.zeros((100, 3))
    off = wanted.copy()
    off[[7, 50]] = 1
    assert Expected((), (wanted,), may_flip=True).error([off]) == 0
    assert Expected((), (wanted,), may_flip=False).error([off]) == 1
    off[51] = 1
    assert Expected((), (wanted,), may_flip=True).error([off]) == 1


def test_inputs_are_digits_for_images_and_never_constant() -> None:
    image = LoadedModel("a", nn.Identity(), ((1, 28, 28), (5,)), ModelMetadata(Preprocess(mean=(0.5,))), "factory")
    inputs, described = bench_inputs(image, 4, seed=0)
    assert described == "handwritten digits, random in [0, 1]"
    assert [(value.shape, value.dtype) for value in inputs] == [((4, 1, 28, 28), np.float32), ((4, 5), np.float32)]
    assert inputs[0].min() == -0.5 and all(value.std() > 0.05 for value in inputs)
    vector = LoadedModel("b", nn.Identity(), ((9,),), ModelMetadata(), "factory")
    again = bench_inputs(vector, 4, seed=1)[0][0]
    assert bench_inputs(vector, 4, seed=1)[1] == "random in [0, 1]"
    np.testing.assert_array_equal(again, bench_inputs(vector, 4, seed=1)[0][0])


def test_the_machine_is_described() -> None:
    machine = this_machine()
    assert machine.cores >= 1 and machine.memory_gib > 0.1 and machine.cpu
    assert 0 <= cpu_share_in_use(0.05) <= 1
    assert versions()["numpy"] == np.__version__


def test_the_verb_writes_json_and_prints_a_table(tmp_path: Path) -> None:
    from stn_infer.cli.bench import command

    output = tmp_path / "bench.json"
    arguments = [TINY, "--input-shape", "1,8,8", "--batch-sizes", "2", "--variant", "eager", "--samples", "4"]
    done = CliRunner().invoke(command, [*arguments, "-o", str(output)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "eager" in done.output and "wrote" in done.output
    fields = json.loads(output.read_text())
    assert len(fields["measurements"][0]["samples_ms"]) == 4
    assert fields["command"].split()[0] == "stn-infer"


def test_the_verb_fails_when_a_variant_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_infer.cli.bench import command

    monkeypatch.setattr(Expected, "error", lambda self, outputs: 0.5)
    with pytest.raises(VerificationError, match="eager at batch 1: outputs are off"):
        CliRunner().invoke(
            command,
            [TINY, "--input-shape", "1,8,8", "--batch-sizes", "1", "--variant", "eager"],
            catch_exceptions=False,
        )


def test_the_verb_fails_when_nothing_could_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_infer.cli.bench import command

    def none(*arguments: object) -> object:
        raise MissingDependencyError("no such runtime")

    monkeypatch.setattr(variants_module, "_torch", none)
    with pytest.raises(ModelError, match="nothing could be timed; eager: no such runtime"):
        CliRunner().invoke(command, [TINY, "--input-shape", "1,8,8", "--variant", "eager"], catch_exceptions=False)


def test_wrong_batch_sizes_are_usage_errors() -> None:
    from stn_infer.cli.bench import command

    with pytest.raises(UsageError, match="joined by commas"):
        CliRunner().invoke(command, [TINY, "--batch-sizes", "1;2"], catch_exceptions=False)


@pytest.mark.slow
def test_torch_compile_is_one_of_them() -> None:
    compiled = bench(TINY, batch_sizes=(2,), variants=("compile",), input_shapes=[(1, 8, 8)], plan=QUICK)
    assert compiled.get("compile", 2).status == "timed"
    assert dict(compiled.get("compile", 2).runs_on)["runtime"] == "torch.compile"
