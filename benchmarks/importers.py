"""Which importers take which form of a file, and whether their outputs are right: a table of ``docs/conformance.md``.

Three forms of one network are given to each importer on the CPU: the portable file (ops of domain ``stn`` with
functions), the same with ``--functions inline``, and the file that ``torch.onnx.export`` writes. TensorRT-RTX, which
needs a GPU to run, only builds its engine.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx

from stn_infer.arrays import Array
from stn_infer.errors import MissingDependencyError, one_line

FORMS = ("portable", "inlined", "torch.onnx.export")
"""The forms of a file, in the order of the table."""

_TOLERANCE = 1e-4  # of the output's scale
_SECONDS = 120


@dataclass(frozen=True)
class Importer:
    """What reads ONNX files.

    Attributes:
        name: in the table.
        package: its distribution on PyPI.
        run: the first output for one input, from a file's bytes; None where it was imported, but cannot run here.
    """

    name: str
    package: str
    run: Callable[[bytes, Array], Array | None]


@dataclass(frozen=True)
class Taken:
    """What became of a file: ``right``, ``wrong``, ``builds``, ``refused`` or ``absent``; the error, or the reason."""

    verdict: str
    error: float = 0.0
    reason: str = ""

    def text(self) -> str:
        """The text in the table; an error is rounded up to a power of ten."""
        if self.verdict == "wrong":
            return f"**wrong by 1e{math.ceil(math.log10(self.error))}**"
        return "-" if self.verdict == "absent" else self.verdict


def take(importer: Importer, content: bytes, image: Array, expected: Array) -> Taken:
    """Give a file to an importer and judge the output against ``expected``."""
    try:
        found = importer.run(content, image)
    except (ImportError, MissingDependencyError) as error:
        return Taken("absent", reason=one_line(error))
    except Exception as error:  # an importer may raise any exception
        return Taken("refused", reason=one_line(error, 200))
    if found is None:
        return Taken("builds")
    scale = float(np.abs(expected).max())
    largest = float(np.nan_to_num(np.abs(found.reshape(expected.shape) - expected), nan=np.inf).max()) / scale
    return Taken("right" if largest <= _TOLERANCE else "wrong", largest)


# ---- the importers -----------------------------------------------------------------------------------------------


def _onnxruntime(plugin: bool) -> Callable[[bytes, Array], Array]:
    def run(content: bytes, image: Array) -> Array:
        from stn_infer.backends.ort import OrtBackend

        backend = OrtBackend(content, threads=1, plugin=plugin)
        return next(iter(backend.run({backend.inputs[0].name: image}).values()))

    return run


def _openvino(extension: bool) -> Callable[[bytes, Array], Array]:
    """OpenVINO itself on the file as it is, without what our backend does before."""

    def run(content: bytes, image: Array) -> Array:
        import io

        from stn_infer.backends.openvino.extension import find
        from stn_infer.backends.openvino.runtime import core_with, load_openvino, reason

        openvino = load_openvino()
        core = core_with(openvino, find(openvino) if extension else None)
        try:
            compiled = core.compile_model(
                core.read_model(io.BytesIO(content)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
            )
            return np.asarray(compiled([image])[0])
        except RuntimeError as error:
            raise RuntimeError(reason(error)) from error

    return run


def _opencv(content: bytes, image: Array) -> Array:
    import cv2

    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
        network.setInput(image)
        return np.asarray(network.forward())
    finally:
        cv2.utils.logging.setLogLevel(level)


def _ncnn(content: bytes, image: Array) -> Array:
    """pnnx converts the file, ncnn runs the result, both in float32."""
    import ncnn

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(content)
        shape = ",".join(map(str, image.shape))
        tool = Path(sys.executable).with_name("pnnx")
        if not tool.exists():
            raise MissingDependencyError("pnnx is not installed; pip install pnnx")
        done = subprocess.run(
            [str(tool), "model.onnx", f"inputshape=[{shape}]", "fp16=0"],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
        if not (folder / "model.ncnn.param").exists():
            raise RuntimeError(f"pnnx ends with {done.returncode}: {(done.stdout + done.stderr).strip()[-200:]}")
        network = ncnn.Net()
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(network.opt, option, False)
        network.load_param(str(folder / "model.ncnn.param"))
        network.load_model(str(folder / "model.ncnn.bin"))
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0]))
        return np.array(extractor.extract("out0")[1])[None]


def _tinygrad(content: bytes, image: Array) -> Array:
    """tinygrad on its slow device, which needs no compiler; in a process of its own, since it is chosen for good."""
    import tinygrad  # noqa: F401  # whether it is installed

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(content)
        np.save(folder / "image.npy", image)
        script = (
            "import numpy; from tinygrad import Tensor; from tinygrad.nn.onnx import OnnxRunner; "
            "runner = OnnxRunner('model.onnx'); "
            "outputs = runner({next(iter(runner.graph_inputs)): Tensor(numpy.load('image.npy'))}); "
            "numpy.save('output.npy', next(iter(outputs.values())).numpy())"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env={**os.environ, "DEV": "PYTHON"},
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return np.asarray(np.load(folder / "output.npy"))


def _rtx(content: bytes, image: Array) -> None:
    """TensorRT-RTX's parser and builder, for a GPU of architecture sm_89."""
    from stn_infer.backends.tensorrt.builder import build_plan, prepare
    from stn_infer.backends.tensorrt.profiles import resolve_profiles
    from stn_infer.backends.tensorrt.runtime import load_runtime

    runtime = load_runtime("tensorrt-rtx")
    prepared = prepare(onnx.ModelProto.FromString(content), runtime, plugin=False)
    build_plan(runtime, prepared, resolve_profiles(prepared, None), target="sm89")


def _onnxslim(content: bytes, image: Array) -> Array:
    import onnxslim

    slimmed = onnxslim.slim(onnx.ModelProto.FromString(content))
    return _onnxruntime(False)(slimmed.SerializeToString(), image)


def _onnxsim(content: bytes, image: Array) -> Array:
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.ModelProto.FromString(content))
    return _onnxruntime(False)(simplified.SerializeToString(), image)


IMPORTERS = (
    Importer("onnxruntime", "onnxruntime-gpu", _onnxruntime(False)),
    Importer("onnxruntime with the plugin library", "onnxruntime-gpu", _onnxruntime(True)),
    Importer("TensorRT-RTX", "tensorrt-rtx", _rtx),
    Importer("OpenVINO", "openvino", _openvino(False)),
    Importer("OpenVINO with our extension", "openvino", _openvino(True)),
    Importer("OpenCV", "opencv-python-headless", _opencv),
    Importer("ncnn, by pnnx", "pnnx", _ncnn),
    Importer("tinygrad", "tinygrad", _tinygrad),
    Importer("onnxslim, then onnxruntime", "onnxslim", _onnxslim),
    Importer("onnxsim, then onnxruntime", "onnxsim", _onnxsim),
)


# ---- the table ---------------------------------------------------------------------------------------------------

Rows = list[tuple[Importer, list[Taken]]]


def rows(files: Mapping[str, bytes], image: Array, expected: Array) -> Rows:
    """Each importer with each form."""
    return [(importer, [take(importer, files[form], image, expected) for form in FORMS]) for importer in IMPORTERS]


def files_of(source: str) -> tuple[dict[str, bytes], Array, Array]:
    """The forms of a shipped model's file, one random input of it, and the output of its module in float64."""
    import torch

    from stn_infer.repairs.inlined import inlined
    from stn_infer.sources.load import load_source
    from stn_infer.torch_export.portable import build_plain, build_portable

    loaded = load_source(source)
    portable = build_portable(loaded).model
    models = {"portable": portable, "inlined": inlined(portable), "torch.onnx.export": build_plain(loaded).model}
    image = np.random.default_rng(0).standard_normal((1, *loaded.input_shapes[0])).astype(np.float32)
    with torch.no_grad():
        expected = loaded.module.double()(torch.from_numpy(image).double()).numpy()
    return {form: model.SerializeToString() for form, model in models.items()}, image, expected


def table(found: Rows) -> str:
    """The table in Markdown, with the installed versions."""
    lines = [f"| importer | {' | '.join(FORMS)} |", f"|---|{'---|' * len(FORMS)}"]
    for importer, taken in found:
        try:
            name = f"{importer.name} ({version(importer.package)})"
        except PackageNotFoundError:
            name = importer.name
        lines.append(f"| {name} | {' | '.join(it.text() for it in taken)} |")
    return "\n".join(lines)
