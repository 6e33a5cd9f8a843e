"""What is mutated: small valid files of every kind that a command reads, and the command lines that read them.

A seed is a folder's content and the commands to run in it. Paths are relative to the folder: what is read lies in
``in/``, what is written goes to ``out/``.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support import onnx_files as files
from tests.support import zoo_graphs as graphs
from tests.support.wrong_files import one_transformer

Command = tuple[str, ...]
#: Modification time of every file of a seed: a job that is resumed compares it.
WRITTEN_AT = 1_700_000_000

LINT: Command = ("lint", "in/model.onnx", "--target", "tensorrt==8.6", "--target", "tensorrt==11.4", "--all")
OPTIMIZE: Command = ("optimize", "in/model.onnx", "-o", "out/fused.onnx")
VERIFY: Command = ("verify", "in/model.onnx", "--backend", "ort")
SHOW: Command = ("show", "in/model.onnx", "in/inputs.npz", "-o", "out/picture.png", "--count", "1")
SHOW_IMAGE: Command = ("show", "in/model.onnx", "in/image.png", "-o", "out/picture.svg")
BUILD: Command = (
    *("build", "in/model.onnx", "-o", "out/model.engine", "--runtime", "tensorrt-rtx", "--target", "sm89"),
    *("--cache", "cache"),
)


def _run(source: str, *inputs: str, form: str = "npz") -> Command:
    return ("run", source, *inputs, "-o", "out/p", "--format", form, "--workers", "1")


@dataclass(frozen=True)
class Seed:
    """A valid case.

    Attributes:
        kind: what is mutated: ``onnx``, ``checkpoint``, ``program``, ``recipe``, ``array``, ``image``, ``list``,
            ``metadata``, ``result``, ``suite``, ``sidecar`` or ``status``.
        name: unique within the kind.
        files: path to content.
        targets: the files to mutate, one at a time.
        commands: command lines that read a target; one that is listed twice is run twice as often.
    """

    kind: str
    name: str
    files: Mapping[str, bytes]
    targets: tuple[str, ...]
    commands: tuple[Command, ...]

    def write(self, folder: Path) -> None:
        """Write the files below ``folder``, which has ``in``, ``out`` and ``tmp`` afterwards."""
        for name in ("in", "out", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, (WRITTEN_AT, WRITTEN_AT))


def _saved(save: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        save(path)
        return path.read_bytes()


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


# ---- ONNX --------------------------------------------------------------------------------------------------------


def _quantized() -> onnx.ModelProto:
    """``affine_model`` with its image and its convolution's weights in int8, behind Q and DQ."""
    model = files.affine_model()
    graph = model.graph
    weights = next(it for it in graph.initializer if it.name == "w")
    values = onnx.numpy_helper.to_array(weights)
    graph.initializer.remove(weights)
    graph.initializer.extend(
        [
            files.constant(np.clip(np.rint(values / 0.05), -128, 127), "w_q", np.int8),
            files.constant(0.05, "scale", np.float32),
            files.constant(0, "zero", np.int8),
        ]
    )
    conv = graph.node[0]
    conv.input[:] = ["x_dq", "w"]
    for node in (
        helper.make_node("DequantizeLinear", ["w_q", "scale", "zero"], ["w"]),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_dq"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
    ):
        graph.node.insert(0, node)
    return model


def _optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    from stn_infer.api.optimize import optimize

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/a.onnx")
        optimize(Path(folder) / "a.onnx", Path(folder) / "b.onnx")
        return onnx.load(f"{folder}/b.onnx")


def _classifier() -> onnx.ModelProto:
    """``affine_model`` with three class scores, and our metadata."""
    from stn_infer.metadata import ModelMetadata
    from stn_infer.preprocess.rule import Preprocess

    model = files.affine_model()
    graph = model.graph
    graph.node.append(helper.make_node("Flatten", ["y"], ["flat"]))
    graph.node.append(helper.make_node("MatMul", ["flat", "head"], ["scores"]))
    graph.initializer.append(files.constant(np.random.default_rng(1).standard_normal((64, 3)), "head", np.float32))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3]))
    preprocess = Preprocess("gray", (8, 8), 1 / 255, (0.5,), (0.25,))
    for key, value in ModelMetadata(preprocess, ("zero", "one", "two"), "").to_props().items():
        model.metadata_props.add(key=key, value=value)
    return model


def _models() -> Iterator[tuple[str, onnx.ModelProto]]:
    yield "affine", files.affine_model()
    yield "affine opset 22", files.affine_model(opset=22, mode="linear")
    yield "affine of one", files.affine_model(batch=1)
    yield "AffineGrid", files.affine_grid_model()
    yield "AffineGrid 3-D", files.affine_grid_model(volume=True)
    yield "flow", files.flow_model()
    yield "flow, half grid", files.flow_model(grid=files.F16)
    yield "half", files.half_model(8)
    yield "quantized", _quantized()
    yield "our op", one_transformer()
    yield "our op, projective", one_transformer("projective")
    yield "our op, projective 2", one_transformer("projective", division=(0.5, (0.1, -0.2)))
    volume: tuple[int, ...] = (4, 5, 6)
    yield "our op, projective volume 2", one_transformer("projective", volume, volume, division=(0.5, (0.1, 0.2, 0.3)))
    yield "our op, spline", one_transformer("basis")
    yield "optimized", _optimized(files.affine_model())
    yield "branches", graphs.BRANCHES()
    yield "grid outside of branches", graphs.GRID_BEFORE_BRANCHES()
    yield "loop", graphs.IN_LOOP()
    yield "scan", graphs.IN_SCAN()
    yield "function", graphs.IN_FUNCTION()
    yield "grid from a function", graphs.GRID_IN_FUNCTION()
    yield "frames", graphs.THETA_OF_FRAMES()
    yield "einsum", graphs.EINSUM()
    yield "dynamic size", graphs.OPEN_SIZE()
    yield "spline", graphs.spline(True)()


def _inputs_of(model: onnx.ModelProto) -> bytes:
    """Two samples for the inputs of ``model``."""
    arrays, generator = {}, np.random.default_rng(0)
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [axis.dim_value or (2 if index == 0 else 8) for index, axis in enumerate(tensor.shape.dim)]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        arrays[value.name] = generator.standard_normal(shape).astype(dtype)
    return _npz(**arrays)


def _onnx_seeds() -> Iterator[Seed]:
    commands = (
        *(LINT,) * 4,
        *(OPTIMIZE,) * 4,
        *(_run("in/model.onnx", "in/inputs.npz"),) * 4,
        *(VERIFY,) * 2,
        SHOW,
        BUILD,
    )
    for name, model in _models():
        content = {"in/model.onnx": model.SerializeToString(), "in/inputs.npz": _inputs_of(model)}
        yield Seed("onnx", name, dict(content), ("in/model.onnx",), commands)
        if name in ("affine", "our op", "loop"):
            with tempfile.TemporaryDirectory() as folder:
                onnx.save(
                    model,
                    f"{folder}/model.onnx",
                    save_as_external_data=True,
                    location="model.onnx.data",
                    size_threshold=0,
                )
                for each in ("model.onnx", "model.onnx.data"):
                    content[f"in/{each}"] = (Path(folder) / each).read_bytes()
            yield Seed(
                "onnx",
                f"{name}, external",
                dict(content),
                ("in/model.onnx", "in/model.onnx", "in/model.onnx.data"),
                commands,
            )
    image = dict(_images())["png"]
    content = {"in/model.onnx": _classifier().SerializeToString(), "in/image.png": image}
    commands = (LINT, *(_run("in/model.onnx", "in/image.png", form="csv"),) * 3, VERIFY, SHOW_IMAGE, OPTIMIZE)
    yield Seed("metadata", "ours", content, ("in/model.onnx",), commands)


# ---- arrays and images --------------------------------------------------------------------------------------------


def _images() -> Iterator[tuple[str, bytes]]:
    from PIL import Image

    pixels = (np.indices((8, 8)).sum(0) * 16).astype(np.uint8)
    gray, color = Image.fromarray(pixels), Image.fromarray(np.stack([pixels, pixels.T, 255 - pixels], -1))
    for suffix, image, options in (
        *(("png", gray, {}), ("png", color, {}), ("png", color.convert("P"), {}), ("png", gray.convert("1"), {})),
        *(("jpg", gray, {}), ("jpg", color, {"progressive": True}), ("bmp", color, {}), ("gif", color, {})),
        *(("tiff", gray, {}), ("tiff", color, {"compression": "tiff_lzw"}), ("webp", color, {}), ("ppm", color, {})),
        *(("pgm", gray, {}), ("jp2", color, {}), ("png", gray.convert("I;16"), {}), ("png", color.convert("RGBA"), {})),
    ):
        out = io.BytesIO()
        try:
            image.save(
                out,
                {"jpg": "JPEG", "tiff": "TIFF", "jp2": "JPEG2000", "pgm": "PPM"}.get(suffix, suffix.upper()),
                **options,
            )
        except (OSError, KeyError, ValueError):  # Pillow without this format
            continue
        yield suffix, out.getvalue()


def _input_seeds() -> Iterator[Seed]:
    model = _classifier().SerializeToString()
    samples = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    arrays = {
        "floats": ("npy", _npy(samples)),
        "doubles": ("npy", _npy(samples.astype(np.float64))),
        "pixels": ("npy", _npy((samples[:, 0] * 50).astype(np.uint8))),
        "one sample": ("npy", _npy(samples[0])),
        "fortran": ("npy", _npy(np.asfortranarray(samples))),
        "named": ("npz", _npz(x=samples)),
        "two": ("npz", _npz(x=samples, y=samples[:1])),
    }
    for name, (suffix, content) in arrays.items():
        path = f"in/a.{suffix}"
        commands = (
            *(_run("in/model.onnx", path),) * 3,
            _run("in/model.onnx", "in"),
            ("verify", "in/model.onnx", "--backend", "ort", "--inputs", path),
            ("show", "in/model.onnx", path, "-o", "out/picture.png", "--count", "1"),
            ("export", "in/r.toml", "-o", "out/e.onnx", "--precision", "int8", "--calibrate", path),
        )
        yield Seed("array", name, {"in/model.onnx": model, path: content, "in/r.toml": RECIPE}, (path,), commands)
    for index, (suffix, content) in enumerate(_images()):
        path = f"in/a.{suffix}"
        commands = (
            *(_run("in/model.onnx", path),) * 3,
            _run("in/model.onnx", "in"),
            ("verify", "in/model.onnx", "--backend", "ort", "--inputs", path),
            ("show", "in/model.onnx", path, "-o", "out/picture.png"),
            ("export", "in/r.toml", "-o", "out/e.onnx", "--precision", "int8", "--calibrate", path),
        )
        yield Seed(
            "image",
            f"{suffix} {index}",
            {"in/model.onnx": model, path: content, "in/r.toml": RECIPE},
            (path,),
            commands,
        )
    png = dict(_images())["png"]
    listed = {
        "in/model.onnx": model,
        "in/a.png": png,
        "in/a.npy": _npy(samples),
        "in/list.txt": b"a.png\n./a.npy\n\na.png\n",
    }
    yield Seed("list", "of inputs", listed, ("in/list.txt",), (_run("in/model.onnx", "@in/list.txt"),))
    labeled = {"in/model.onnx": model, "in/a.png": png, "in/labels.txt": b"zero\none\ntwo\n"}
    commands = (
        (*_run("in/model.onnx", "in/a.png"), "--labels", "in/labels.txt"),
        ("show", "in/model.onnx", "in/a.png", "-o", "out/picture.svg", "--labels", "in/labels.txt"),
    )
    yield Seed("list", "of labels", labeled, ("in/labels.txt",), commands)


# ---- PyTorch sources ------------------------------------------------------------------------------------------------

RECIPE = b"""description = "a small ST-FCN"
labels = ["zero", "one", "two"]

[model]
network = "st-fcn-affine"
input_shape = [1, 8, 8]
options = { output_size = [4, 4], classes = 3, hidden = 4, localization_hidden = 4 }

[preprocess]
color = "gray"
size = [8, 8]
scale = "1/255"
mean = [0.5]
std = [0.25]
"""


def _source_seeds() -> Iterator[Seed]:
    import torch
    from safetensors.torch import save_file

    from stn_infer.sources.load import load_source

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "r.toml").write_bytes(RECIPE)
        module = load_source(f"{folder}/r.toml").module
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    image = dict(_images())["png"]
    checkpoints = {
        "zip": ("pt", lambda path: torch.save(state, path)),
        "zip, wrapped": ("pth", lambda path: torch.save({"model": state, "epoch": 3, "loss": 0.5}, path)),
        "legacy": ("pt", lambda path: torch.save(state, path, _use_new_zipfile_serialization=False)),
        "safetensors": ("safetensors", lambda path: save_file(state, path)),
    }
    for name, (suffix, save) in checkpoints.items():
        path = f"in/w.{suffix}"
        content = {"in/r.toml": RECIPE, path: _saved(save, f"w.{suffix}"), "in/a.png": image}
        commands = (
            *((*_run("in/r.toml", "in/a.png", form="csv"), "--weights", path, "--backend", "eager"),) * 5,
            *(("verify", "in/r.toml", "--weights", path, "--backend", "eager"),) * 3,
            ("export", "in/r.toml", "--weights", path, "-o", "out/e.onnx"),
            ("run", path, "in/a.png", "-o", "out/p"),
            ("lint", path),
        )
        yield Seed("checkpoint", name, content, (path,), commands)
    yield Seed(
        "recipe",
        "with weights beside it",
        {"in/r.toml": RECIPE, "in/r.safetensors": _saved(lambda path: save_file(state, path), "r"), "in/a.png": image},
        ("in/r.toml", "in/r.toml", "in/r.safetensors"),
        (
            *((*_run("in/r.toml", "in/a.png", form="csv"), "--backend", "eager"),) * 5,
            *(("verify", "in/r.toml", "--backend", "eager"),) * 3,
            ("export", "in/r.toml", "-o", "out/e.onnx"),
        ),
    )
    program = torch.export.export(
        module, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n", max=1024)},)
    )
    content = {
        "in/m.pt2": _saved(lambda path: torch.export.save(program, path), "m.pt2"),
        "in/a.png": image,
        "in/a.npy": _npy(np.zeros((1, 1, 8, 8), np.float32)),
    }
    commands = (
        *((*_run("in/m.pt2", "in/a.npy", form="csv"), "--backend", "eager"),) * 4,
        *(("verify", "in/m.pt2", "--backend", "eager"),) * 2,
        ("export", "in/m.pt2", "-o", "out/e.onnx"),
        ("show", "in/m.pt2", "in/a.npy", "-o", "out/picture.png"),
    )
    yield Seed("program", "exported", content, ("in/m.pt2",), commands)


# ---- our own files --------------------------------------------------------------------------------------------------


def _written(seed: Seed, *commands: Sequence[str]) -> dict[str, bytes]:
    """All files of ``seed``'s folder after ``commands`` ran in it."""
    from click.testing import CliRunner

    from stn_infer.cli.main import main

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        seed.write(Path(folder))
        os.chdir(folder)
        try:
            for command in commands:
                result = CliRunner().invoke(main, list(command))
                assert result.exit_code == 0, result.output
        finally:
            os.chdir(before)
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != "run.lock"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.suffix != ".lock"}


def _own_seeds() -> Iterator[Seed]:
    samples = _npy(np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32))
    model = files.affine_model().SerializeToString()
    plain = Seed("status", "", {"in/model.onnx": model, "in/a.npy": samples, "in/r.toml": RECIPE}, (), ())
    job = (*_run("in/r.toml", "in/a.npy", form="csv"), "--shard-rows", "2", "--backend", "eager")
    content = _written(plain, job)
    last = sorted(name for name in content if "ledger" in name)[-1]
    del content[last]
    targets = tuple(name for name in content if name.startswith("out/p/"))
    again = ((*job, "--resume"), (*job, "--resume", "--check-inputs"))
    yield Seed("status", "of a job", content, (*("out/p/run.json",) * len(targets), *targets), again)

    content = _written(plain, BUILD)
    engine = "out/model.engine"
    sidecars = tuple(name for name in content if name.endswith(".json"))
    commands = (
        *(BUILD, BUILD, ("cache", "list", "--cache", "cache"), ("cache", "list", "--cache", "cache", "--json")),
        ("cache", "clear", "--cache", "cache"),
        ("run", engine, "in/a.npy", "-o", "out/p", "--backend", "tensorrt-rtx"),
        ("lint", engine),
    )
    yield Seed("sidecar", "of an engine", content, sidecars, commands)

    suite = b"""variants = ["ort"]
rounds = 1
seconds = 0.01
samples = 1

[[model]]
file = "model.onnx"
batch_sizes = [1]
"""
    bench = ("bench", "--suite", "in/suite.toml", "-o", "out/result.json")
    yield Seed("suite", "of one", {**plain.files, "in/suite.toml": suite}, ("in/suite.toml",), (bench,))
    measured = _written(replace(plain, files={**plain.files, "in/suite.toml": suite}), bench)
    result = json.loads(measured["out/result.json"])
    result |= {"command": "stn-infer bench", "created": "2026-01-01T00:00:00+00:00"}
    written = json.dumps(result).encode()
    content = {"in/a.json": written, "in/b.json": written, **plain.files}
    commands = (
        ("bench", "compare", "in/a.json", "in/b.json"),
        ("bench", "compare", "in/b.json", "in/a.json", "--relative-to", "ort"),
        ("bench", "report", "in/a.json", "-o", "out/report"),
    )
    yield Seed("result", "of bench", content, ("in/a.json",), commands)


def seeds() -> tuple[Seed, ...]:
    """All seeds; the same ones each time."""
    return (*_onnx_seeds(), *_input_seeds(), *_source_seeds(), *_own_seeds())
