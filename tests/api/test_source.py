"""SOURCE means the same in every command: identified by content, with the same options and the same messages."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from stn_infer.api.source import names_the_file
from stn_infer.backends.tensorrt.engine_cache import load_engine
from stn_infer.cli.main import main
from stn_infer.errors import ModelError
from stn_infer.torch_export import plain
from tests.support.tensorrt_parts import module_or_skip

FACTORIES = """
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 6)
    def forward(self, x):
        theta = self.head(x.flatten(1)).view(-1, 2, 3)
        warped = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
        return warped.flatten(1)[:, :3]
"""
NET = "source_factories:Net"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("node 'x' has no type", "m.onnx: node 'x' has no type"),
        ("m.onnx is damaged", "m.onnx is damaged"),
        ("cut.onnx is not an ONNX file", "cut.onnx is not an ONNX file"),
        ("none.onnx does not exist", "none.onnx does not exist"),
        ("no kernel for cpu", "m.onnx: no kernel for cpu"),
    ],
)
def test_an_error_names_the_file_at_fault(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").touch()
    Path("cut.onnx").touch()

    @names_the_file
    def fails(model: str, **named: object) -> None:
        raise ModelError(text)

    for against in ("cut.onnx", Path("folder", "cut.onnx")):
        with pytest.raises(ModelError) as found:
            fails("m.onnx", against=against, weights=Path("none.onnx"), device="cpu", tolerance=1.0)
        assert str(found.value) == told


RTX = ("--runtime", "tensorrt-rtx", "--target", "sm89", "--profile", "1:2:4", "--cache", "cache")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, each_network_is_exported_once: None) -> Path:
    """A folder with the network's module, its weights, inputs, an ONNX file and a program of it."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "source_factories.py").write_text(FACTORIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        from source_factories import Net  # type: ignore[import-not-found]

        torch.manual_seed(3)
        net = Net().eval()
        torch.save(net.state_dict(), folder / "weights.pt")
        batch = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(net, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=batch)
        torch.export.save(program, folder / "net.pt2")
        np.save(folder / "inputs.npy", np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32))
        done = call("export", NET, "--weights", "weights.pt", "--input-shape", "1,8,8", "-o", "net.onnx")
        assert done.exit_code == 0, done.output
    sys.modules.pop("source_factories", None)
    return folder


@pytest.fixture(scope="module", autouse=True)
def each_network_is_exported_once() -> Iterator[None]:
    """Cache exports, because PyTorch's exporter takes seconds and is not under test here."""
    known: dict[tuple[object, ...], onnx.ModelProto] = {}
    original = plain.export_plain

    def export_plain(module: nn.Module, *arguments: object, **named: object) -> onnx.ModelProto:
        weights = tuple(tensor.numpy().tobytes() for tensor in module.state_dict().values())
        key = (repr(module), weights, repr(arguments), repr(named))
        if key not in known:
            known[key] = original(module, *arguments, **named)  # type: ignore[arg-type]
        copy = onnx.ModelProto()
        copy.CopyFrom(known[key])
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "export_plain", export_plain)
        yield


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: a copy of ``made``."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("source_factories", None)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def run(source: str, *options: str) -> Result:
    return call("run", source, "inputs.npy", "-o", "predictions", "--format", "npz", *options)


def verify(source: str, *options: str) -> Result:
    return call("verify", source, "--backend", "ort", *options)


def bench(source: str, *options: str) -> Result:
    quick = ("--rounds", "1", "--seconds", "0.01", "--samples", "2", "--batch-sizes", "2", "--variant", "ort")
    return call("bench", source, *quick, *options)


def show(source: str, *options: str) -> Result:
    return call("show", source, "inputs.npy", "-o", "picture.png", *options)


def build(source: str, *options: str) -> Result:
    module_or_skip("tensorrt_rtx", "tensorrt-rtx")
    return call("build", source, "-o", "built", *RTX, *options)


def export(source: str, *options: str) -> Result:
    return call("export", source, "-o", "exported.onnx", *options)


def optimize(source: str, *options: str) -> Result:
    return call("optimize", source, "-o", "optimized.onnx", *options)


def lint(source: str, *options: str) -> Result:
    return call("lint", source, *options)


Command = Callable[..., Result]
RUNNERS: tuple[Command, ...] = (run, verify, bench, show, build)
LOADERS: tuple[Command, ...] = (*RUNNERS, export)
ALL: tuple[Command, ...] = (*LOADERS, optimize, lint)


def name_of(command: Command) -> str:
    return command.__name__


@pytest.mark.parametrize("name", ["upper.ONNX", "model"])
@pytest.mark.parametrize("command", (*RUNNERS, optimize, lint), ids=name_of)
def test_an_onnx_file_may_have_any_name(folder: Path, command: Command, name: str) -> None:
    shutil.copy("net.onnx", name)
    done = command(name)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", ["model.pb", "model.toml", "model.engine", "a:b.onnx", "weights.bin"])
def test_an_onnx_file_may_have_another_suffix(folder: Path, name: str) -> None:
    shutil.copy("net.onnx", name)
    for command in (run, verify):
        done = command(name)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", LOADERS, ids=name_of)
def test_every_command_takes_weights_and_shapes(folder: Path, command: Command) -> None:
    options = ("--weights", "weights.pt", "--input-shape", "1,8,8")
    done = command(NET, *options)
    assert done.exit_code == 0, done.output
    without = command(NET, *options[:2])
    assert without.exit_code == 2 and "add --input-shape C,H,W" in without.stderr


def test_run_uses_the_given_weights(folder: Path) -> None:
    shape = ("--input-shape", "1,8,8")
    assert run(NET, "--weights", "weights.pt", *shape).exit_code == 0
    with np.load("predictions/predictions-00000.npz") as stored:
        first = {name: stored[name] for name in stored.files}
    shutil.rmtree("predictions")
    assert run("net.onnx").exit_code == 0
    with np.load("predictions/predictions-00000.npz") as stored:
        np.testing.assert_allclose(stored["output"], first["output"], atol=1e-5)
    torch.save({"head.weight": torch.zeros(6, 64), "head.bias": torch.zeros(6)}, "other.pt")
    shutil.rmtree("predictions")
    assert run(NET, "--weights", "weights.pt", *shape).exit_code == 0
    other = run(NET, "--weights", "other.pt", *shape, "--resume")
    assert other.exit_code == 1 and "cannot resume another job" in other.stderr


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's own, in the module of a program
@pytest.mark.parametrize("name", ["program", "program.onnx", "program.bin"])
def test_a_program_may_have_any_name(folder: Path, name: str) -> None:
    shutil.copy("net.pt2", name)
    done = show(name)
    assert done.exit_code == 0, done.output


def test_a_recipe_may_have_any_name(folder: Path) -> None:
    Path("recipe.txt").write_text(f'[model]\nnetwork = "{NET}"\ninput_shape = [1, 8, 8]\n')
    for command in (run, verify):
        done = command("recipe.txt", "--weights", "weights.pt", "--allow-code")
        assert done.exit_code == 0, done.output


# ---- messages for other files -------------------------------------------------------------------------------------


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "checkpoint": ("w.pt", lambda path: shutil.copy("weights.pt", path), "is a checkpoint: weights without a network"),
    "checkpoint called .onnx": ("w.onnx", lambda path: shutil.copy("weights.pt", path), "is a checkpoint"),
    "checkpoint that is missing": ("w.safetensors", lambda path: None, "does not exist"),
    "LFS pointer": (
        "m.onnx",
        write(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "Git LFS pointer, not the file itself; fetch it with git lfs pull",
    ),
    "HTML page": ("m.onnx", write(b"<!DOCTYPE html>\n<html><body>404</body></html>"), "is an HTML page"),
    "folder": ("folder", lambda path: path.mkdir(), "is a folder"),
    "missing": ("none.onnx", lambda path: None, "does not exist"),
    "missing without a suffix": ("./none", lambda path: None, "does not exist"),
    "empty": ("m.onnx", write(b""), "is empty"),
    "picture": ("m.onnx", write(b"\x89PNG\r\n\x1a\n1234"), "is a PNG image"),
    "array": ("m.npy", write(b"\x93NUMPY\x01\x00"), "is a NumPy array file"),
    "Python": ("net.py", write(b"class Net: ...\n"), "name a factory in it as net:FACTORY"),
    "archive": ("m.onnx.gz", write(b"\x1f\x8b\x08\x00"), "is a compressed file; unpack it first"),
    "anything": ("m.dat", write(b"\x00\x01\x02\x03" * 9), "is not a known kind of file"),
    "engine": ("net.engine", write(b"ftrt" + bytes(60)), "is a TensorRT engine"),
    "engine called .bin": ("net.bin", write(b"vtrt" + bytes(60)), "is a TensorRT engine"),
}


@pytest.mark.parametrize("command", ALL, ids=name_of)
@pytest.mark.parametrize(("name", "make", "message"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_not_a_model_is_named(
    folder: Path, command: Command, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(Path(name))
    done = command(name)
    lines = done.stderr.splitlines()
    assert done.exit_code in (1, 2) and lines[-1].startswith("error: "), done.output
    assert message in lines[-1] and Path(name).name in lines[-1], done.output
    if command is not bench:  # which first prints an estimate of its duration
        assert len(lines) == 1
    assert not list(folder.glob("*tmp*")) and not Path("predictions").exists()


@pytest.mark.parametrize("command", [optimize, lint], ids=name_of)
@pytest.mark.parametrize("source", ["st-cnn-affine-rts", NET, "net.pt2"])
def test_commands_for_onnx_files_ask_for_an_export(folder: Path, command: Command, source: str) -> None:
    done = command(source)
    assert done.exit_code == 1
    assert f"{source} is not an ONNX file; export it first: stn-infer export {source} -o FILE.onnx" in done.stderr


@pytest.mark.parametrize("command", [run, show, build], ids=name_of)
def test_options_of_a_pytorch_source_are_refused_with_a_file(folder: Path, command: Command) -> None:
    done = command("net.onnx", "--weights", "weights.pt")
    assert done.exit_code == 2 and "net.onnx contains its weights; omit --weights" in done.stderr
    done = command("net.onnx", "--input-shape", "1,9,9")
    assert done.exit_code == 2 and "the file's inputs are 1x8x8, not 1x9x9" in done.stderr
    assert command("net.onnx", "--input-shape", "1,8,8").exit_code == 0  # the file's own shape


@pytest.mark.parametrize("command", [verify, bench], ids=name_of)
def test_weights_with_a_file_belong_to_its_source(folder: Path, command: Command) -> None:
    done = command("net.onnx", "--weights", "weights.pt")
    assert done.exit_code == 2 and "--weights belong to a source; name it with --source SOURCE" in done.stderr
    done = command("net.onnx", "--weights", "weights.pt", "--source", NET)
    assert done.exit_code == 0, done.output
    done = command(NET, "--source", NET, "--input-shape", "1,8,8")
    assert done.exit_code == 2 and "--source is for ONNX files" in done.stderr


def test_a_registered_name_takes_precedence_over_a_file(folder: Path) -> None:
    shutil.copy("net.onnx", "fcn")
    done = call("verify", "fcn", "--backend", "ort", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["title"].startswith("float64"), done.stdout
    assert call("lint", "./fcn").exit_code == 0


def test_an_engine_is_identified_by_its_first_bytes(folder: Path) -> None:
    assert build("net.onnx").exit_code == 0
    content, sidecar = load_engine(Path("built"))
    assert sidecar is not None
    Path("renamed").write_bytes(content)  # neither a suffix nor a sidecar
    done = run("renamed")
    assert done.exit_code == 1 and "renamed is a TensorRT engine" in done.stderr
    assert "--backend tensorrt" in done.stderr
