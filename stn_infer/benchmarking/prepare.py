"""Before the rounds: the model's files, the inputs that all variants get, and what they must give, in one folder."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stn_infer.backends.base import Array
from stn_infer.benchmarking.check import Expected, bench_inputs
from stn_infer.benchmarking.result import Case, Model, Precision
from stn_infer.errors import ModelError, SourceError, StnInferError, UsageError, one_line

if TYPE_CHECKING:
    import onnx

    from stn_infer.sources.load import LoadedModel

Say = Callable[[str], None]

# Of the scale: a half type has 11 or 8 bits, and a network adds up many of their roundings.
_HALF_TOLERANCE: dict[Precision, float] = {"fp16": 1e-2, "bf16": 5e-2}
_WEIGHTS = "weights.pt"
_LEAST_SPREAD_PX = 0.5


@dataclass(frozen=True)
class Prepared:
    """A case on disk: what a round's process needs to open any variant.

    Attributes:
        folder: holds ``weights.pt`` and ``batch-N.npz`` with inputs and expected outputs.
        name: the model's.
        source: what to load in PyTorch; None: nothing is known of the file, or it is not needed.
        source_weights: a checkpoint that goes with it.
        input_shapes: without batch.
        precision: of weights and images.
        plain, portable: ONNX files; None where there is none.
        problems: ``torch``, ``plain`` or ``portable`` to why there is none.
        batch_sizes: those that are there.
        may_flip: whether a sampler is ``nearest``.
        cuts: tensors of the two files that grids are computed from: where a profile's "grid" begins.
        sys_path: where modules are imported from.
    """

    folder: str
    name: str
    source: str | None
    source_weights: str | None
    input_shapes: tuple[tuple[int, ...], ...]
    precision: Precision
    plain: str | None
    portable: str | None
    problems: Mapping[str, str]
    batch_sizes: tuple[int, ...]
    may_flip: bool
    cuts: tuple[str, ...]
    sys_path: tuple[str, ...]

    def expected(self, batch_size: int) -> Expected:
        """The inputs and outputs at a batch size."""
        with np.load(Path(self.folder) / f"batch-{batch_size}.npz") as stored:
            return Expected(_numbered(stored, "input"), _numbered(stored, "output"), self.may_flip)

    def load(self) -> LoadedModel:
        """The model in PyTorch, with the very weights that the reference had.

        Raises:
            SourceError: there is no source.
        """
        import torch

        from stn_infer.sources.load import load_source

        if self.source is None:
            raise SourceError(self.problems["torch"])
        weights = Path(self.source_weights) if self.source_weights else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loaded = load_source(self.source, weights=weights, input_shapes=self.input_shapes)
        loaded.module.load_state_dict(torch.load(Path(self.folder) / _WEIGHTS, weights_only=True))
        return loaded


def prepare(
    case: Case, folder: Path, *, files: frozenset[str], tolerance: float | None, seed: int, say: Say
) -> tuple[Prepared, Model]:
    """Load a case's model, make its files, inputs and expected outputs, and write them into ``folder``.

    Args:
        case: what is asked for.
        folder: empty.
        files: which ONNX files are needed, of ``plain`` and ``portable``.
        tolerance: on each output's error over its scale; None: chosen by reference and precision.
        seed: of random inputs.
        say: told what is being done.

    Raises:
        UsageError, SourceError, ModelError: the model cannot be had.
    """
    say(f"loading {case.model}")
    loaded, given, problem = _load(case)
    hashes: dict[str, str] = {}
    build_s: dict[str, float] = {}
    if loaded is not None:
        hashes["weights"] = _save_weights(loaded, folder / _WEIGHTS)
    say(f"exporting {case.model}")
    made, problems, cuts = _files(loaded, given, folder, files, case.precision, build_s) if files else ({}, {}, ())
    if problem:
        problems["torch"] = problem
    hashes |= {name: _sha256(path) for name, path in made.items()}
    if given is not None:
        hashes["file"] = _sha256(given)
    if loaded is not None:
        run, kind, seen = _torch_reference(loaded)
        shapes, name, rule = loaded.input_shapes, loaded.name, loaded
    else:
        assert given is not None
        run, kind, seen, rule = _file_reference(given, case)
        shapes, name = rule.input_shapes, given.stem
    say(f"reference outputs of {name}")
    inputs_sha256 = {}
    described = ""
    for batch in case.batch_sizes:
        inputs, described = bench_inputs(rule, batch, seed)
        try:
            outputs = run(inputs)
        except StnInferError:
            raise
        except Exception as error:  # whatever the model's own code or its runtime raises
            fed = " and ".join(str(list(value.shape)) for value in inputs)
            raise ModelError(f"{name} fails on float32 inputs {fed}: {one_line(error)}") from error
        arrays: dict[str, Any] = {f"input_{index}": value for index, value in enumerate(inputs)}
        arrays |= {f"output_{index}": value for index, value in enumerate(outputs)}
        np.savez(folder / f"batch-{batch}.npz", **arrays)
        inputs_sha256[str(batch)] = hash_arrays(inputs)
    limit = tolerance or _HALF_TOLERANCE.get(case.precision) or _tolerance(kind)
    prepared = Prepared(
        str(folder),
        name,
        None if loaded is None else _source(case, loaded),
        case.weights,
        shapes,
        case.precision,
        str(made["plain"]) if "plain" in made else None,
        str(made["portable"]) if "portable" in made else None,
        problems,
        case.batch_sizes,
        seen.nearest,
        cuts,
        tuple(sys.path),
    )
    notes = [loaded.note] if loaded is not None and loaded.note else []
    if seen.alike:
        notes.append(
            "all samples of a batch have the same sampling grid, which caches like: train it, or give --weights"
        )
    model = Model(name, case, shapes, described, inputs_sha256, kind, limit, hashes, build_s, tuple(notes))
    return prepared, model


def hash_arrays(arrays: Sequence[Array]) -> str:
    """SHA-256 of types, shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _load(case: Case) -> tuple[LoadedModel | None, Path | None, str]:
    """The model in PyTorch, the ONNX file if that is what was given, and why there is no model in PyTorch."""
    import torch

    from stn_infer.sources.load import load_source

    weights = Path(case.weights) if case.weights else None
    if not case.model.endswith(".onnx"):
        if case.source is not None:
            raise UsageError(f"--source goes with an ONNX file; {case.model} is a source itself")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return load_source(case.model, weights=weights, input_shapes=case.input_shapes), None, ""
    from stn_infer.backends.ort import OrtBackend

    path = Path(case.model)
    backend = OrtBackend(path, threads=1)
    shapes = case.input_shapes
    if shapes is None and all(axis is not None for spec in backend.inputs for axis in spec.shape[1:]):
        shapes = tuple(tuple(axis for axis in spec.shape[1:] if axis is not None) for spec in backend.inputs)
    named = backend.metadata.source
    backend.close()
    if not (case.source or named):
        return None, path, f"{path.name} does not say what it was exported from; name it with --source SOURCE"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return load_source(case.source or named, weights=weights, input_shapes=shapes), path, ""
    except StnInferError as error:
        if case.source or weights:
            raise
        return None, path, f"{path.name} says that it comes from {named}, which is not to be had here: {error}"


def _source(case: Case, loaded: LoadedModel) -> str:
    return (case.source or loaded.metadata.source) if case.model.endswith(".onnx") else case.model


def _save_weights(loaded: LoadedModel, path: Path) -> str:
    """Write the weights; their hash, by name, type, shape and value."""
    import torch

    state = loaded.module.state_dict()
    torch.save(state, path)
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _files(
    loaded: LoadedModel | None,
    given: Path | None,
    folder: Path,
    wanted: frozenset[str],
    precision: Precision,
    build_s: dict[str, float],
) -> tuple[dict[str, Path], dict[str, str], tuple[str, ...]]:
    """The plain and the portable file, why one of them is missing, and what their grids are computed from.

    Seconds go into ``build_s``.
    """
    from stn_infer.graph.export import BF16_OPSET, OPSET, export_plain
    from stn_infer.graph.load import load_model
    from stn_infer.graph.op import spatial_nodes
    from stn_infer.graph.precision import to_half
    from stn_infer.graph.spatial import fuse

    made: dict[str, Path] = {}
    problems: dict[str, str] = {}
    cuts: list[str] = []
    plain: onnx.ModelProto | None = None
    if given is not None:
        file = load_model(given)
        if spatial_nodes(file):
            made["portable"] = given.resolve()
        else:
            plain, made["plain"] = file, given.resolve()
    if loaded is None and plain is None:
        problems["plain"] = "the file holds spatial-transformer nodes; what it was before them is not known"
    try:
        if plain is None and loaded is not None and ("plain" in wanted or "portable" not in made):
            began = time.perf_counter()
            opset = BF16_OPSET if precision == "bf16" else OPSET
            plain = export_plain(loaded.module, loaded.input_shapes, loaded.name, opset=opset)
            made["plain"] = _write(plain, folder / "plain.onnx")
            build_s["plain"] = round(time.perf_counter() - began, 3)
        if plain is not None and "portable" in wanted and "portable" not in made:
            began = time.perf_counter()
            portable, findings = fuse(plain)
            made["portable"] = _write(portable, folder / "portable.onnx")
            cuts += [name for finding in findings for name in finding.cut]
            build_s["portable"] = round(time.perf_counter() - began, 3)
    except StnInferError as error:
        for name in ("plain", "portable"):
            if name not in made:
                problems[name] = str(error)
    if "portable" in made:
        cuts += [node.theta for node in spatial_nodes(load_model(made["portable"]))]
    if precision != "fp32":
        for name in list(made):
            try:
                made[name] = _write(
                    to_half(load_model(made[name]), precision).model, folder / f"{name}-{precision}.onnx"
                )
            except StnInferError as error:
                del made[name]
                problems[name] = str(error)
    return made, problems, tuple(dict.fromkeys(cuts))


def _write(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@dataclass
class _Seen:
    """What the reference's samplers showed: whether one is ``nearest``, and whether grids differ between samples."""

    nearest: bool = False
    alike: bool = False


def _torch_reference(loaded: LoadedModel) -> tuple[Callable[[Sequence[Array]], list[Array]], str, _Seen]:
    """Eager PyTorch in float64 where that works: how to run it, what it is, and what is seen on the way."""
    from stn_infer.reference.model import Reference

    reference = Reference(loaded.module, loaded.input_shapes)
    seen = _Seen()

    def run(inputs: Sequence[Array]) -> list[Array]:
        outputs, samplings = reference.run(inputs)
        seen.nearest |= any(call.mode == "nearest" for call in samplings)
        if len(inputs[0]) > 1:
            spreads = [float(np.ptp(call.pixels(call.grid), axis=0).max(initial=0.0)) for call in samplings]
            seen.alike |= any(spread < _LEAST_SPREAD_PX for spread in spreads)
        return outputs

    return run, f"{reference.dtype} eager", seen


def _file_reference(path: Path, case: Case) -> tuple[Callable[[Sequence[Array]], list[Array]], str, _Seen, LoadedModel]:
    """onnxruntime without optimisations, for a file of which nothing else is known."""
    import onnxruntime
    from torch import nn

    from stn_infer.graph.load import load_model
    from stn_infer.metadata import ModelMetadata
    from stn_infer.sources.load import LoadedModel

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if not session.get_inputs():
        raise ModelError(f"{path}: expected a model with inputs; it has none")
    wrong = [value for value in session.get_inputs() if value.type != "tensor(float)"]
    if wrong:
        raise UsageError(
            f"{path}: bench feeds float32, input {wrong[0].name!r} takes {wrong[0].type}; "
            "put a Cast before it, or leave it to a variant of your own"
        )
    names = [value.name for value in session.get_inputs()]
    shapes = case.input_shapes or tuple(tuple(value.shape[1:]) for value in session.get_inputs())
    if any(not isinstance(axis, int) for shape in shapes for axis in shape):
        raise UsageError(f"{path}: it has free axes besides the batch; add --input-shape C,H,W")
    metadata = ModelMetadata.from_props(session.get_modelmeta().custom_metadata_map)
    nearest = any(
        attribute.name == "mode" and attribute.s == b"nearest"
        for node in load_model(path).graph.node
        for attribute in node.attribute
    )

    def run(inputs: Sequence[Array]) -> list[Array]:
        return [np.asarray(value) for value in session.run(None, dict(zip(names, inputs, strict=True)))]

    stand_in = LoadedModel(path.stem, nn.Identity(), shapes, metadata, "factory")
    return run, "float32 onnxruntime without optimisations", _Seen(nearest), stand_in


def _tolerance(reference: str) -> float:
    from stn_infer.verification.run import TOLERANCE, TOLERANCE_FP32_REFERENCE

    return TOLERANCE if reference.startswith("float64") else TOLERANCE_FP32_REFERENCE


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _numbered(stored: Any, name: str) -> tuple[Array, ...]:
    count = sum(key.startswith(f"{name}_") for key in stored.files)
    return tuple(stored[f"{name}_{index}"] for index in range(count))
