"""bench with real runtimes: outputs are verified first, unavailable variants are named, the file has every sample."""

from __future__ import annotations

import functools
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn_infer.api.bench import bench, measure
from stn_infer.benchmarking.harness.processes import Crashed
from stn_infer.benchmarking.report.terminal import render
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.result import BenchResult, read_result
from stn_infer.benchmarking.variants import pytorch as torch_module
from stn_infer.errors import AssumptionWarning, UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from stn_infer.reference.comparison import Expected
from stn_infer.reference.samples import bench_inputs
from stn_infer.sources.load import LoadedModel
from stn_infer.transforms import Affine
from tests.support.paths import ROOT

TINY_METHOD = Method(
    rounds=2, seconds=0.01, samples=6, turns=1, warmup_seconds=0.0, warmup_limit=0.1, row_limit=1.0, isolate=False
)


class Tiny(nn.Module):
    """A minimal network with a spatial transformer, whose weights differ each time."""

    def __init__(self) -> None:
        super().__init__()
        self.localization = nn.Linear(64, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = self.localization(x.flatten(1)).unflatten(1, (2, 3))
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False).mean((2, 3))


class Layered(nn.Module):
    """The same with the project's layer."""

    def __init__(self) -> None:
        super().__init__()
        localization = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
        self.transformer = SpatialTransformer(localization, Affine(), (8, 8), identity_init=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.transformer(x).mean((2, 3))


TINY, LAYERED = f"{__name__}:Tiny", f"{__name__}:Layered"
SHAPE = [(1, 8, 8)]


@pytest.fixture(scope="module")
def result() -> BenchResult:
    variants = ("eager", "fused", "ort-plain", "ort", "ort-fused", "ort-binding", "openvino", "graph")
    return bench(LAYERED, batch_sizes=(1, 3), variants=variants, input_shapes=SHAPE, method=TINY_METHOD)


def test_every_variant_is_verified_and_timed_at_each_batch_size(result: BenchResult) -> None:
    assert result.passed and result.complete
    timed = [row for row in result.measurements if row.status == "timed"]
    assert {(row.variant, row.batch_size) for row in timed} >= {
        (variant, batch) for batch in (1, 3) for variant in ("eager", "ort-plain", "ort", "ort-binding")
    }
    for row in timed:
        assert row.error is not None and row.error <= 1e-5
        assert len(row.samples_ms) >= 6 and min(row.samples_ms) > 0
        assert [each.round for each in row.rounds] == [0, 1]
        assert row.p90_ms is None or len(row.samples_ms) >= 64
        assert row.items == row.batch_size and row.throughput and row.throughput > 0
        assert row.runs_on["threads"] == str(result.request.threads)  # the same for every runtime
    assert result.models[0].reference == "float64 eager"
    assert result.models[0].inputs == "handwritten digits"
    assert set(result.models[0].inputs_sha256) == {"1", "3"}


def test_the_execution_provider_and_time_of_each_sampler(result: BenchResult) -> None:
    by_variant = {row.variant: row for row in result.measurements if row.batch_size == 3}
    (eager,), (plain,) = by_variant["eager"].samplers, by_variant["ort-plain"].samplers
    assert eager.op.startswith("aten.grid_sampler") and eager.place == "cpu"
    assert (plain.op, plain.place) == ("GridSample", "CPUExecutionProvider")
    stages = by_variant["ort-plain"].stages
    assert stages is not None and stages["grid"] > 0 and stages["sampling"] > 0 and stages["rest"] > 0
    portable = by_variant["ort"].stages
    assert portable is not None and portable["grid"] > 0
    in_pytorch = by_variant["eager"].stages
    assert in_pytorch is not None and min(in_pytorch.values()) > 0 and list(in_pytorch) == ["grid", "sampling", "rest"]


def test_the_librarys_op_runs_without_computing_a_grid(result: BenchResult) -> None:
    fused = result.get("ort-fused", 3)
    if fused.status == "unavailable":
        pytest.skip(f"no plugin library: {fused.reason}")
    assert [sampler.op for sampler in fused.samplers] == ["SpatialTransformer"]
    assert fused.stages is not None and fused.stages["grid"] == 0 and fused.stages["sampling"] > 0
    (layer,) = result.get("fused", 3).samplers
    assert layer.op == "stn.spatial_transformer"
    assert "plugin library" in result.models[0].sha256


def test_openvino_tells_where_its_samplers_ran_and_the_share_of_sampling(result: BenchResult) -> None:
    row = result.get("openvino", 3)
    if row.status == "unavailable":
        pytest.skip(f"no OpenVINO: {row.reason}")
    (sampler,) = row.samplers
    assert sampler.op == "GridSample" and sampler.place.startswith("OpenVINO, ")
    assert row.runs_on["runtime"] == "OpenVINO" and row.runs_on["plugin"] == "none"
    assert row.stages is not None and set(row.stages) == {"sampling", "rest"}
    assert "does not tell which nodes compute the sampling grid" in row.left_out["the grid's share"]


def test_variants_that_need_a_gpu_are_listed_with_the_reason(result: BenchResult) -> None:
    row = result.get("graph", 1)
    assert (row.status, row.reason) == ("unavailable", "CUDA graphs need a GPU, the device is cpu")


def test_the_table_shows_each_row_and_explains_the_difference(result: BenchResult) -> None:
    from rich.console import Console

    console = Console(width=240, record=True, file=io.StringIO())
    console.print(render(result))
    text = console.export_text()
    assert text.count("ort-plain") >= 4  # two rows, one explanation, one comparison
    assert "outputs verified against float64 eager to 1e-05" in text
    assert "a quick look (2 rounds" in text


def test_a_resumed_run_uses_the_same_weights_in_a_fresh_process(tmp_path: Path) -> None:
    arguments = {"batch_sizes": (2,), "variants": ("eager", "fused"), "input_shapes": SHAPE}
    done = bench(TINY, **arguments, method=TINY_METHOD)  # type: ignore[arg-type]
    assert done.get("eager", 2).status == "timed"
    assert "no stn_infer.SpatialTransformer layer" in done.get("fused", 2).reason
    half = replace(
        done, log=done.log[:1], measurements=tuple(replace(row, rounds=row.rounds[:1]) for row in done.measurements)
    )
    output = tmp_path / "result.json"
    apart = replace(done.request, method=replace(TINY_METHOD, isolate=True))
    whole = measure(apart, earlier=half, output=output)
    assert read_result(output) == whole and whole.complete
    row = whole.get("eager", 2)
    assert row.status == "timed"  # the factory's weights are random: without those of the reference it would be off
    assert [each.round for each in row.rounds] == [0, 1] and row.rounds[0] == done.get("eager", 2).rounds[0]


@pytest.mark.parametrize("end", ["abort", "interrupt"])
def test_a_process_that_dies_names_the_variant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str) -> None:
    from stn_infer.benchmarking.harness.processes import Processes, run_apart
    from stn_infer.benchmarking.harness.round import RoundTask
    from stn_infer.benchmarking.harness.worker import Task

    name = f"dying_by_{end}"
    module = tmp_path / f"{name}.py"
    call = "os.abort()" if end == "abort" else "os.kill(os.getpid(), 2)"
    module.write_text(
        "import os, torch\n"
        "class Dying(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        if 'stn_infer.benchmarking.harness.worker' in getattr(__import__('__main__').__spec__, 'name', ''):\n"
        f"            {call}\n"
        "        return x.mean((2, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from stn_infer.api.bench import make_request, resolve_case
    from stn_infer.benchmarking.request import Case

    case = Case(f"{name}:Dying", input_shapes=((1, 4, 4),), batch_sizes=(2,))
    request = make_request([case], ["eager"], "cpu", 1, None, TINY_METHOD)
    folder = tmp_path / "work"
    folder.mkdir()
    processes = Processes(folder, resolve_case)
    (model,) = processes.prepare(request, lambda text: None)
    task = Task(processes.prepared[0], RoundTask(model, request, 0, ("eager",)))
    if end == "interrupt":  # Ctrl-C is not a failure of the variant
        with pytest.raises(KeyboardInterrupt):
            run_apart(task, folder, lambda text: None)
        return
    with pytest.raises(Crashed) as caught:
        run_apart(task, folder, lambda text: None)
    assert (caught.value.variant, caught.value.how) == ("eager", "signal 6")


def test_a_variant_with_wrong_outputs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = torch_module.TorchVariant.run
    monkeypatch.setattr(
        torch_module.TorchVariant, "run", lambda self, *given: [out * 1.001 for out in run(self, *given)]
    )
    off = bench(TINY, batch_sizes=(2,), variants=("eager",), input_shapes=SHAPE, method=TINY_METHOD)
    assert not off.passed
    eager = off.get("eager", 2)
    assert (eager.status, eager.samples_ms, eager.median_ms) == ("failed", (), None)
    assert eager.error == pytest.approx(1e-3, rel=1e-2)
    assert "expected at most 1e-05: not timed" in eager.reason


class Small(Tiny):
    """A network whose outputs are far below 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1e-6


class Masked(Tiny):
    """A network with a logit of minus infinity."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.tensor([0.0, -float("inf")])


def test_an_infinite_logit_is_not_an_error() -> None:
    variants = ("eager", "ort-plain", "ort")
    timed = bench(f"{__name__}:Masked", batch_sizes=(2,), variants=variants, input_shapes=SHAPE, method=TINY_METHOD)
    assert timed.passed, [row.reason for row in timed.measurements]
    assert all((timed.get(name, 2).error or 0) <= 1e-5 for name in variants)


def test_a_small_output_is_judged_on_its_own_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    run = torch_module.TorchVariant.run
    given = {"batch_sizes": (2,), "variants": ("eager",), "input_shapes": SHAPE, "method": TINY_METHOD}
    assert bench(f"{__name__}:Small", **given).passed  # type: ignore[arg-type]
    monkeypatch.setattr(torch_module.TorchVariant, "run", lambda *call: [out * (1 + 1e-4) for out in run(*call)])
    off = bench(f"{__name__}:Small", **given)  # type: ignore[arg-type]
    assert off.get("eager", 2).error == pytest.approx(1e-4, rel=0.1) and not off.passed


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain file without the name of its source."""
    from stn_infer.torch_export.plain import export_plain

    path = tmp_path_factory.mktemp("bare") / "tiny.onnx"
    path.write_bytes(export_plain(Tiny().eval(), SHAPE).SerializeToString())
    return path


def test_a_bare_onnx_file_is_measured_where_it_can_run(bare: Path) -> None:
    variants = ("eager", "ort-plain", "ort")
    done = bench(bare, batch_sizes=(2,), variants=variants, method=TINY_METHOD)
    assert "does not name the source that it was exported from; give --source" in done.get("eager", 2).reason
    assert done.get("ort-plain", 2).status == done.get("ort", 2).status == "timed"
    assert done.models[0].reference == "float32 onnxruntime without optimizations"
    assert done.models[0].tolerance == 1e-4


def test_the_device_boundary_binds_and_load_is_measured_on_request(bare: Path) -> None:
    method = replace(TINY_METHOD, boundary="device", concurrency=(1, 2), rates=(200.0,), traffic_seconds=0.05)
    row = bench(bare, batch_sizes=(2,), variants=("ort-plain",), method=method).get("ort-plain", 2)
    assert row.status == "timed" and row.runs_on["IO binding"] == "yes"
    (alone,) = row.rounds[0].throughput  # one binding serves one caller
    assert alone.callers == 1 and alone.calls > 0
    assert row.left_out["throughput with 2 callers"] == "inputs and outputs that are bound serve one caller"
    assert len(row.rounds[0].paced[0].latencies_ms) == 5
    both = bench(bare, batch_sizes=(2,), variants=("ort-plain",), method=replace(method, boundary="host"))
    assert [it.callers for it in both.get("ort-plain", 2).rounds[0].throughput] == [1, 2]


def test_onnxruntimes_profiler_gives_no_gpu_times(bare: Path) -> None:
    from stn_infer.backends.ort import OrtBackend
    from stn_infer.benchmarking.variants.ort_stages import inspect_session, named_nodes

    opener = functools.partial(OrtBackend, device="cpu", threads=1, plugin=False)
    feeds = {opener(bare).inputs[0].name: np.zeros((2, 1, 8, 8), np.float32)}
    here = inspect_session(opener, named_nodes(bare, False), feeds, (), "cpu")
    gpu = inspect_session(opener, named_nodes(bare, False), feeds, (), "cuda:0")
    assert here.stages is not None and gpu.samplers == here.samplers
    assert gpu.stages is None and "times launches on a GPU" in gpu.left_out["stages"]


def test_end_to_end_goes_from_files_to_a_file() -> None:
    method = replace(TINY_METHOD, boundary="end-to-end", rounds=1, samples=2)
    with pytest.warns(AssumptionWarning, match="assumed gray with values 0..1") as told:
        files = bench(TINY, batch_sizes=(16,), variants=("eager", "fused"), input_shapes=SHAPE, method=method)
    assert len(told) == 1
    assert (files.get("eager", 16).items, files.get("eager", 16).status) == (64, "timed")
    assert "no such backend" in files.get("fused", 16).reason
    (sampler,) = files.get("eager", 16).samplers
    assert sampler.op.startswith("aten.grid_sampler") and sampler.place == "cpu"
    assert files.get("eager", 16).left_out == {"stages": "a call also reads, decodes and writes files"}


def test_a_file_from_another_source_is_not_timed(bare: Path) -> None:
    done = bench(bare, source=TINY, batch_sizes=(2,), variants=("eager", "ort-plain"), method=TINY_METHOD)
    assert done.get("eager", 2).status == "timed"
    assert done.get("ort-plain", 2).status == "failed"  # other random weights


def test_half_precision_has_its_own_tolerance_and_files() -> None:
    method = replace(TINY_METHOD, rounds=1)
    arguments = {"batch_sizes": (2,), "variants": ("eager", "ort-plain"), "method": method}
    done = bench("fcn", precision="fp16", **arguments)  # type: ignore[arg-type]
    assert done.models[0].tolerance == 1e-2
    for variant in ("eager", "ort-plain"):
        row = done.get(variant, 2)
        assert row.status == "timed" and row.error is not None and 1e-5 < row.error < 1e-2
    brain = bench("fcn", precision="bf16", **arguments)  # type: ignore[arg-type]
    assert brain.models[0].tolerance == 5e-2 and brain.get("eager", 2).status == "timed"
    assert "no bfloat16 operators" in brain.get("ort-plain", 2).reason


def test_wrong_arguments_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"variants are eager, compile, .*; got tvm"):
        bench(TINY, variants=("tvm",), input_shapes=SHAPE)
    with pytest.raises(UsageError, match="at least 1, given 0"):
        bench(TINY, batch_sizes=(0,), input_shapes=SHAPE)
    with pytest.raises(UsageError, match="--source is for ONNX files"):
        bench(TINY, source="cnn", input_shapes=SHAPE)
    with pytest.raises(UsageError, match="a precision is one of fp32, fp16, bf16, int8, not 'fp8'"):
        bench(TINY, precision="fp8", input_shapes=SHAPE)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the number of threads must be at least 1, got 0"):
        bench(TINY, threads=0, input_shapes=SHAPE)
    with pytest.raises(UsageError, match="a boundary is one of host, device, end-to-end"):
        Method(boundary="kernel")  # type: ignore[arg-type]
    for limit in (0.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match=f"the time limit is a number of seconds above 0, not {limit:g}"):
            bench(TINY, time_limit=limit, input_shapes=SHAPE)
    for wrong in ({"seconds": float("inf")}, {"rates": (float("inf"),)}, {"concurrency": (0,)}):
        with pytest.raises(UsageError, match="finite"):
            Method(**wrong)  # type: ignore[arg-type]


def test_a_file_that_is_not_a_result_is_refused(tmp_path: Path, result: BenchResult) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(UsageError, match="No such file"):
        read_result(path)
    for text, message in (
        ("{", "this is not"),
        ("[]", "no schema_version"),
        ('{"schema_version": 1}', "expected schema version 2 to 3, it is 1; measure again"),
        ('{"schema_version": 4}', "it is 4; a newer stn-infer wrote it"),
        ('{"schema_version": true}', "it is True"),
        ('{"schema_version": 3}', "damaged"),
        ("[" * 100_000, "this is not"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_result(path)
    for damage, message in (
        (lambda it: it.pop("machine"), "lacks 'machine'"),
        (lambda it: it.update(versions=[]), "expected an object, found list"),
        (lambda it: it.update(models=[]), "holds no model"),
        (lambda it: it["request"]["method"].update(rounds=0), "result.json.*rounds is at least 1"),
        (lambda it: it["measurements"][0].update(model="other"), "none of its models"),
        (lambda it: it["measurements"][0].update(rounds=[]), "lacks samples"),
        (lambda it: it["measurements"][0]["rounds"][0].update(samples_ms=[0.0]), "not a time"),
        (lambda it: it["measurements"][0]["rounds"][0].update(samples_ms=["1"]), "expected float, found str"),
        (lambda it: it["measurements"][0].update(batch_size=True), "expected int, found bool"),
    ):
        broken = json.loads(result.to_json())
        damage(broken)
        path.write_text(json.dumps(broken))
        with pytest.raises(UsageError, match=message):
            read_result(path)
    path.write_text(result.to_json())
    assert read_result(path) == result


def test_a_result_of_the_previous_schema_is_read(tmp_path: Path, result: BenchResult) -> None:
    old = json.loads(result.to_json())
    old["schema_version"] = 2
    for case in [*old["request"]["cases"], *(model["case"] for model in old["models"])]:
        del case["inputs"]
    for row in old["measurements"]:
        del row["left_out"]
    for log in old["log"]:
        for reading in log["readings"]:
            del reading["gpu_held_back_ns"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    found = read_result(path)
    assert found.schema_version == 3 and found.get("ort", 3).samples_ms == result.get("ort", 3).samples_ms
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is in the test extra")
    schema = json.loads((ROOT / "benchmarks/schema/bench-result.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(old)
    del old["measurements"][0]["samplers"]  # was there before, too
    path.write_text(json.dumps(old))
    with pytest.raises(UsageError, match="lacks 'samplers'"):
        read_result(path)


def test_the_file_fits_the_published_schema(result: BenchResult) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is in the test extra")
    schema = ROOT / "benchmarks" / "schema" / "bench-result.schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    content = json.loads(result.to_json())
    validator.validate(content)
    assert next(iter(content)) == "schema_version"
    assert content["measurements"][0]["figures"]["percentiles_ms"]["p50"] == result.measurements[0].median_ms
    for damage in (
        lambda it: it.pop("machine"),
        lambda it: it["measurements"][0].update(status="fast"),
        lambda it: it["measurements"][0]["rounds"][0].update(samples_ms=["1"]),
        lambda it: it.update(extra=1),
    ):
        broken = json.loads(result.to_json())
        damage(broken)
        assert not validator.is_valid(broken)


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
    wanted = np.ones((100, 3))
    off = wanted.copy()
    off[[7, 50]] = 2
    assert Expected((), (wanted,), may_flip=True).error([off]) == 0
    assert Expected((), (wanted,), may_flip=False).error([off]) == 1
    off[51] = 2
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


def test_identical_grids_are_reported() -> None:
    done = bench("st-cnn-affine", batch_sizes=(2,), variants=("eager",), method=replace(TINY_METHOD, rounds=1))
    assert any("same sampling grid" in note for note in done.models[0].notes)
    trained = bench("st-cnn-affine-rts", batch_sizes=(2,), variants=("eager",), method=replace(TINY_METHOD, rounds=1))
    assert not trained.models[0].notes


@pytest.mark.slow
def test_torch_compile_is_a_variant() -> None:
    compiled = bench(TINY, batch_sizes=(2,), variants=("compile",), input_shapes=SHAPE, method=TINY_METHOD)
    assert compiled.get("compile", 2).status == "timed"
    row = compiled.get("compile", 2)
    assert row.runs_on["runtime"] == "torch.compile" and row.runs_on["graph breaks"] == "none"
    assert row.runs_on["compiler"].startswith(("1 compiled, 0", "0 compiled, 1"))
    assert row.samplers[0].op == "generated by the compiler" and "fuses" in row.left_out["stages"]
