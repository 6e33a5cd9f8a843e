"""Third-party files are tried in a separate process first, in every command, once for each content."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from stn_infer.api.lint import lint
from stn_infer.api.optimize import optimize
from stn_infer.api.run import run
from stn_infer.api.trusted import try_once
from stn_infer.budget import Budget
from stn_infer.cli.main import main
from stn_infer.errors import ModelError
from stn_infer.repairs.trial import Verdict
from tests.support.onnx_files import F32, affine_model, constant, make

I64, BOOL = TensorProto.INT64, TensorProto.BOOL
VALUE = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", I64), ("go", BOOL), ("v", F32))]


def loop_model(trips: list[int]) -> onnx.ModelProto:
    """A Loop that only hands its value on; onnxruntime reads the number of trips unchecked."""
    out = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("go_on", BOOL), ("w", F32))]
    nodes = [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["v"], ["w"])]
    body = helper.make_graph(nodes, "body", VALUE, out)
    start = helper.make_node("ReduceSum", ["x"], ["start"], keepdims=0)
    loop = helper.make_node("Loop", ["trips", "", "start"], ["end"], body=body)
    add = helper.make_node("Add", ["x", "end"], ["y"])
    tensor = helper.make_tensor("trips", I64, [len(trips)], trips) if len(trips) != 1 else constant(trips[0], "trips")
    return make([start, loop, add], {"x": (F32, ["n", 1, 6, 6])}, {"y": (F32, ["n", 1, 6, 6])}, [tensor])


def large_model(elements: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return make(nodes, {"x": (F32, ["n", 4])}, {"y": (F32, ["n", 4])}, [constant([elements], "size")])


@pytest.mark.usefixtures("trial")
@pytest.mark.parametrize(
    "command",
    [
        "lint {model}",
        "optimize {model} -o {out}/result.onnx",
        "run {model} {inputs} -o {out}/predictions",
        "verify {model}",
        "verify {sound} --against {model}",
        "show {model} {inputs} -o {out}/picture.png",
        "build {model} -o {out}/engine --runtime tensorrt-rtx --target sm89",
        pytest.param("bench {model} --quick --output {out}/result.json", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_crashes_onnxruntime_is_one_line_in_every_command(command: str, tmp_path: Path) -> None:
    if command.startswith("build"):
        pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "out"
    out.mkdir()
    onnx.save(loop_model([]), tmp_path / "model.onnx")
    onnx.save(loop_model([2]), tmp_path / "sound.onnx")
    np.save(tmp_path / "inputs.npy", np.zeros((2, 1, 6, 6), np.float32))
    paths = {"model": tmp_path / "model.onnx", "sound": tmp_path / "sound.onnx", "inputs": tmp_path / "inputs.npy"}
    result = CliRunner().invoke(main, [part.format(out=out, **paths) for part in command.split()])
    assert result.exit_code == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert (
        line == f"error: {paths['model']}: a native library crashed on it (SIGSEGV) in a trial run; the file is damaged"
    )
    assert not list(out.iterdir())


def test_limits_are_on_memory_and_cpu_time(trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(large_model(2**27), tmp_path / "large.onnx")
    onnx.save(loop_model([2**62]), tmp_path / "endless.onnx")
    monkeypatch.setenv("STN_TRIAL_GIB", "0.25")
    with pytest.raises(ModelError, match=r"large\.onnx: it requests more memory than 0\.25 GiB .*--trial-memory"):
        try_once(tmp_path / "large.onnx")
    monkeypatch.setenv("STN_TRIAL_SECONDS", "2")
    with pytest.raises(
        ModelError, match=r"endless\.onnx: its analysis takes more than 2 s of CPU time.*--trial-seconds"
    ):
        try_once(tmp_path / "endless.onnx")
    assert not trial.exists()
    monkeypatch.setenv("STN_TRIAL_GIB", "2")
    monkeypatch.setenv("STN_TRIAL_SECONDS", "30")
    try_once(tmp_path / "large.onnx")
    assert len(list(trial.iterdir())) == 1


@pytest.mark.parametrize("name", ["STN_TRIAL_SECONDS", "STN_TRIAL_GIB"])
def test_a_limit_that_is_not_a_number(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(affine_model(), tmp_path / "model.onnx")
    monkeypatch.setenv(name, "much")
    result = CliRunner().invoke(main, ["lint", str(tmp_path / "model.onnx")])
    assert result.exit_code == 2 and f"{name} is a number of" in result.stderr and "'much'" in result.stderr


def test_one_content_is_tried_once(trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file is called; a change in it, in its external data or in the shapes makes another."""
    tried = []
    monkeypatch.setattr("stn_infer.repairs.trial.try_model", lambda content, *rest: tried.append(content) or Verdict())
    onnx.save(affine_model(), tmp_path / "a.onnx", save_as_external_data=True, location="w", size_threshold=64)

    def counted(path: Path | bytes, shapes: dict[str, tuple[int, ...]] | None = None) -> int:
        tried.clear()
        monkeypatch.setattr("stn_infer.api.trusted._passed", {})  # as in another process
        try_once(path, shapes=shapes)
        return len(tried)

    assert [counted(tmp_path / "a.onnx"), counted(tmp_path / "a.onnx")] == [1, 0]
    shutil.copy(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert counted(tmp_path / "b.onnx") == 0
    assert [counted(tmp_path / "a.onnx", {"x": (1, 1, 8, 8)}), counted(tmp_path / "a.onnx", {"x": (1, 1, 8, 8)})] == [
        1,
        0,
    ]
    weights = bytearray((tmp_path / "w").read_bytes())
    weights[0] ^= 1
    (tmp_path / "w").write_bytes(weights)
    assert [counted(tmp_path / "a.onnx"), counted(tmp_path / "b.onnx")] == [1, 0]
    content = affine_model().SerializeToString()
    assert [counted(content), counted(content)] == [1, 0]
    monkeypatch.setattr("stn_infer.api.trusted.versions", lambda packages: dict.fromkeys(packages, "another"))
    assert counted(content) == 1
    assert trial.stat().st_mode & 0o777 == 0o700
    assert all(entry.stat().st_size < 100 and entry.stat().st_mode & 0o077 == 0 for entry in trial.iterdir())


def test_what_others_write_is_not_believed(trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in the folder's place, and a folder that cannot be made: every process tries for itself."""
    tried = []
    monkeypatch.setattr("stn_infer.repairs.trial.try_model", lambda content, *rest: tried.append(content) or Verdict())
    onnx.save(affine_model(), tmp_path / "model.onnx")
    try_once(tmp_path / "model.onnx")
    trial.rename(tmp_path / "elsewhere")
    trial.symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        monkeypatch.setattr("stn_infer.api.trusted._passed", {})
        try_once(tmp_path / "model.onnx")
    trial.unlink()
    trial.write_text("")
    monkeypatch.setattr("stn_infer.api.trusted._passed", {})
    try_once(tmp_path / "model.onnx")
    try_once(tmp_path / "model.onnx")
    assert len(tried) == 4


def test_a_file_that_optimize_wrote_has_passed(trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(affine_model(), tmp_path / "model.onnx")
    optimize(tmp_path / "model.onnx", tmp_path / "result.onnx")
    tried = []
    monkeypatch.setattr("stn_infer.repairs.trial.try_model", lambda content, *rest: tried.append(content) or Verdict())
    monkeypatch.setattr("stn_infer.api.trusted._passed", {})
    lint(tmp_path / "result.onnx")
    assert not tried and len(list(trial.iterdir())) == 2


def test_a_function_of_another_opset_is_no_internal_error(tmp_path: Path) -> None:
    """onnx's inliner refuses what onnxruntime runs."""
    nodes = [helper.make_node("Identity", ["a"], ["z"])]
    function = helper.make_function("f", "g", ["a"], ["z"], nodes, [helper.make_opsetid("", 13)])
    call = helper.make_node("g", ["x"], ["y"], domain="f")
    model = make([call], {"x": (F32, ["n", 4])}, {"y": (F32, ["n", 4])}, [], domains=("f",), functions=[function])
    onnx.save(model, tmp_path / "model.onnx")
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "model.onnx")])
    assert result.exit_code in (0, 1) and "internal error" not in result.stderr


def test_whether_onnxruntime_opens_it_is_remembered(
    trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(affine_model(), tmp_path / "opens.onnx")
    strange = make([helper.make_node("Strange", ["x"], ["y"])], {"x": (F32, ["n", 4])}, {"y": (F32, ["n", 4])}, [])
    onnx.save(strange, tmp_path / "strange.onnx")

    def found() -> tuple[Verdict | None, Verdict | None]:
        monkeypatch.setattr("stn_infer.api.trusted._passed", {})
        return try_once(tmp_path / "opens.onnx"), try_once(tmp_path / "strange.onnx")

    opens, rejected = found()
    assert opens == Verdict() and rejected is not None
    assert rejected.rejection.startswith("onnxruntime rejects the file: ") and "Strange" in rejected.rejection
    monkeypatch.setattr("stn_infer.repairs.trial.try_model", lambda *rest: pytest.fail("it was tried again"))
    assert found() == (opens, rejected)
    monkeypatch.setattr("stn_infer.lint_rules.context.open_session", lambda *rest: pytest.fail("it was opened again"))
    assert [finding.code for finding in lint(tmp_path / "strange.onnx").findings][:1] == ["does-not-run"]
    for entry in trial.iterdir():
        entry.write_text("")  # as of a file that this package wrote
    assert found() == (None, None)


@pytest.mark.parametrize("size", [4, "s"])
def test_dependence_on_the_batch_is_found_in_the_trial(
    size: int | str, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third-party file has no metadata: run, lint and optimize take it from the verdict."""
    axes = numpy_helper.from_array(np.array([0]), "axes")
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["mixed"]),
        helper.make_node("Neg", ["x"], ["own"]),
    ]
    shape = (F32, ["n", size])
    onnx.save(make(nodes, {"x": shape}, {"own": shape, "mixed": shape}, [axes], opset=18), tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.float32))
    told = run(tmp_path / "model.onnx", tmp_path / "x.npy", tmp_path / "a", format="npz")
    assert told.batch_dependent == ("mixed",)
    alone = run(tmp_path / "model.onnx", tmp_path / "x.npy", tmp_path / "b", format="npz", batch_size=1)
    assert alone.batch_dependent == ()
    monkeypatch.setattr("stn_infer.repairs.trial.try_model", lambda *rest: pytest.fail("it was tried again"))
    monkeypatch.setattr("stn_infer.api.trusted._passed", {})
    optimize(tmp_path / "model.onnx", tmp_path / "result.onnx")
    for name in ("model.onnx", "result.onnx"):
        (found,) = [entry for entry in lint(tmp_path / name).findings if entry.code == "batch-dependent"]
        assert (found.tensor, found.severity) == ("mixed", "warning")


def test_a_verdict_is_its_text_again() -> None:
    for verdict in (Verdict(), Verdict("onnxruntime rejects it: [a]"), Verdict("", ("a", "ß\n"))):
        assert Verdict.parse(verdict.to_text()) == verdict
    many = Verdict.parse(Verdict("", tuple(f"output {index}" for index in range(100))).to_text())
    assert many is not None and many.batch_dependent[:2] == ("output 0", "output 1")
    assert Verdict.parse("") is None and Verdict.parse("batch-dependent: [") is None


def test_a_file_is_hashed_once(trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(affine_model(), tmp_path / "model.onnx")
    np.save(tmp_path / "inputs.npy", np.zeros((2, 1, 8, 8), np.float32))
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, *rest: Any) -> Any:
        hashed.append(Path(file.name).name)
        return digest(file, *rest)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    run(tmp_path / "model.onnx", tmp_path / "inputs.npy", tmp_path / "out", format="npz")
    assert hashed.count("model.onnx") == 1
    onnx.save(large_model(4), tmp_path / "model.onnx")
    assert try_once(tmp_path / "model.onnx") == Verdict() and hashed.count("model.onnx") == 2


@pytest.mark.usefixtures("trial")
@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (["--trial-memory", "0.25"], "more memory than 0.25 GiB"),
        (["--trial-seconds", "1"], "more than 1 s of CPU time"),
    ],
)
def test_limits_are_options(options: list[str], limit: str, tmp_path: Path) -> None:
    onnx.save(large_model(2**27) if "memory" in options[0] else loop_model([2**62]), tmp_path / "model.onnx")
    result = CliRunner().invoke(main, ["lint", str(tmp_path / "model.onnx"), *options])
    assert result.exit_code == 1 and limit in result.stderr and f"raise the limit with {options[0]}" in result.stderr
    assert CliRunner().invoke(main, ["lint", str(tmp_path / "model.onnx"), "--trial-seconds", "-1"]).exit_code == 2


@pytest.mark.slow
@pytest.mark.usefixtures("trial")
def test_the_passes_over_a_graph_are_limited(tmp_path: Path) -> None:
    """400 grids, each computed from the one before, take them much longer than onnxruntime."""
    count, nodes = 400, [helper.make_node("MatMul", ["theta", "basis"], ["m0"])]
    for i in range(count):
        nodes.append(helper.make_node("Mul", [f"m{i}", "c"], [f"m{i + 1}"]))
        nodes.append(helper.make_node("Reshape", [f"m{i + 1}", "size"], [f"g{i}"]))
        nodes.append(helper.make_node("GridSample", ["x", f"g{i}"], [f"o{i}"]))
    nodes.append(helper.make_node("Sum", [f"o{i}" for i in range(count)], ["y"]))
    basis = np.random.default_rng(0).random(6 * 72)
    tensors = [helper.make_tensor("basis", F32, [6, 72], basis), helper.make_tensor("c", F32, [], [0.999])]
    inputs = {"x": (F32, ["n", 1, 6, 6]), "theta": (F32, ["n", 6])}
    model = make(nodes, inputs, {"y": (F32, ["n", 1, 6, 6])}, [*tensors, constant([-1, 6, 6, 2], "size")])
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="its analysis takes more than 3 s"):
        lint(tmp_path / "model.onnx", budget=Budget(seconds=3))


@pytest.mark.parametrize("node", ["Reshape", "Expand", "ConstantOfShape", "Unsqueeze"])
def test_a_size_in_external_data_is_named_and_fixed(node: str, tmp_path: Path) -> None:
    """onnxruntime does not read it."""
    values, output = {"Reshape": ([-1, 2, 2], ["n", 2, 2]), "Unsqueeze": ([1], ["n", 1, 4])}.get(
        node, ([1, 4], ["n", 4])
    )
    made = [helper.make_node(node, ["x", "size"], ["y"])]
    if node == "ConstantOfShape":
        made = [helper.make_node(node, ["size"], ["zero"]), helper.make_node("Add", ["x", "zero"], ["y"])]
    path = tmp_path / "model.onnx"
    model = make(made, {"x": (F32, ["n", 4])}, {"y": (F32, output)}, [constant(values, "size")])
    onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0)
    (finding,) = [finding for finding in lint(path).findings if finding.severity == "error"]
    assert (finding.code, finding.tensor, finding.fixable) == ("external-constant", "size", True)
    optimize(path, tmp_path / "fixed.onnx")
    assert not lint(tmp_path / "fixed.onnx").counts["error"]


@pytest.mark.parametrize("command", ["verify {model}", "run {model} {inputs} -o {out}"])
def test_errors_name_the_file(command: str, tmp_path: Path) -> None:
    """Also those of metadata and functions, which are read where no path is known."""
    model = affine_model()
    model.metadata_props.add(key="stn_infer.preprocess", value="null")
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "inputs.npy", np.zeros((2, 1, 8, 8), np.float32))
    paths = {"model": tmp_path / "model.onnx", "inputs": tmp_path / "inputs.npy", "out": tmp_path / "out"}
    result = CliRunner().invoke(main, [part.format(**paths) for part in command.split()])
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {tmp_path / 'model.onnx'}: the file's stn_infer")
    assert "preprocess is not an object" in result.stderr


@pytest.mark.parametrize("scalar", [False, True])
def test_models_without_a_batch_are_no_internal_error(scalar: bool, tmp_path: Path) -> None:
    """Without inputs, or with a scalar as the only one."""
    node = helper.make_node("Relu", ["x"], ["y"]) if scalar else helper.make_node("ConstantOfShape", ["c"], ["y"])
    inputs = {"x": (F32, [])} if scalar else {}
    model = make([node], inputs, {"y": (F32, [] if scalar else [2, 3])}, [] if scalar else [constant([2, 3], "c")])
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "inputs.npy", np.zeros((2, 1), np.float32))
    path, run_it = (
        str(tmp_path / "model.onnx"),
        ["run", str(tmp_path / "model.onnx"), str(tmp_path / "inputs.npy"), "-o"],
    )
    assert CliRunner().invoke(main, ["verify", path]).exit_code == 0
    for name, options in (("csv", []), ("npz", ["--format", "npz"])):
        done = CliRunner().invoke(main, [*run_it, str(tmp_path / name), *options])
        assert done.exit_code in (1, 2, 4) and "internal error" not in done.stderr, done.stderr
