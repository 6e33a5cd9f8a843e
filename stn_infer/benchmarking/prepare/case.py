"""Before the rounds: the model's files, the inputs that all variants get, and what they must give, in one folder."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.device import Device
from stn_infer.benchmarking.prepare.inputs import Feeds
from stn_infer.benchmarking.prepare.model_files import ModelFiles, make_files
from stn_infer.benchmarking.prepare.references import file_reference, tolerance_of, torch_reference
from stn_infer.benchmarking.request import Case, Method, Progress
from stn_infer.benchmarking.result import CALIBRATION, Model
from stn_infer.errors import ModelError, SourceError, UsageError
from stn_infer.metadata import Precision
from stn_infer.preprocess.rule import Preprocess
from stn_infer.proto.load import content_hash, external_tensors, read_graph
from stn_infer.reference.comparison import Expected
from stn_infer.sources.fingerprint import fingerprint_module

if TYPE_CHECKING:
    from stn_infer.sources.load import LoadedModel


@dataclass(frozen=True)
class CaseModel:
    """What a case's model turned out to be; made from it by ``api/bench.py``, the only one that sees a SOURCE.

    Attributes:
        loaded: the model in PyTorch; None where it is not known.
        file: the ONNX file that was given; None where a PyTorch source was.
        problem: why ``loaded`` is None.
        precision: of ``file``.
    """

    loaded: LoadedModel | None
    file: Path | None = None
    problem: str = ""
    precision: Precision = "fp32"


Resolver = Callable[[Case], CaseModel]

_WEIGHTS = "weights.pt"


@dataclass(frozen=True, kw_only=True)
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
        preprocess: the preprocessing of the model in PyTorch; None if there is no such model or it takes no images.
        scales: what the error of each output is divided by.
    """

    folder: str
    name: str
    source: str | None = None
    source_weights: str | None = None
    input_shapes: tuple[tuple[int, ...], ...]
    precision: Precision = "fp32"
    plain: str | None = None
    portable: str | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    batch_sizes: tuple[int, ...]
    may_flip: bool = False
    cuts: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    scales: tuple[float, ...] = ()

    def expected(self, batch_size: int) -> Expected:
        """The inputs and outputs at a batch size."""
        with np.load(Path(self.folder) / f"batch-{batch_size}.npz") as stored:
            return Expected(_numbered(stored, "input"), _numbered(stored, "output"), self.may_flip, self.scales)

    def load(self) -> LoadedModel:
        """The model in PyTorch, with the very weights that the reference had.

        Raises:
            SourceError: there is no source.
        """
        import torch

        from stn_infer.sources.load import load_source

        if self.source is None:
            raise SourceError(self.problems["torch"])
        # whoever prepared the case has loaded this source, with leave where that was needed
        loaded = load_source(self.source, weights=self.source_weights, input_shapes=self.input_shapes, allow_code=True)
        loaded.module.load_state_dict(torch.load(Path(self.folder) / _WEIGHTS, weights_only=True))
        return loaded


@dataclass(frozen=True)
class Setup:
    """What a variant is opened with.

    Attributes:
        prepared: the model on disk.
        device: ``cpu`` or ``cuda:N``.
        threads: threads inside one operator.
        method: boundary and cache.
    """

    prepared: Prepared
    device: str
    threads: int
    method: Method

    @property
    def device_index(self) -> int:
        """N of ``cuda:N``; 0 for the CPU."""
        return Device.parse(self.device).index


def files_of(name: str) -> tuple[str, ...]:
    """Which ONNX files a variant may need, of ``plain`` and ``portable``."""
    if ":" in name:
        return ("plain", "portable")
    if not name.startswith(("ort", "trt", "openvino")):
        return ()
    return ("plain",) if name.endswith("-plain") else ("portable",)


def onnx_file(name: str, prepared: Prepared) -> str:
    """The file that an onnxruntime, OpenVINO or TensorRT variant runs.

    Raises:
        ModelError: there is none.
    """
    (which,) = files_of(name)
    file = prepared.plain if which == "plain" else prepared.portable
    if file is None:
        raise ModelError(prepared.problems.get(which, f"there is no {which} file"))
    return file


def prepare(
    case: Case,
    folder: Path,
    resolve: Resolver,
    *,
    files: frozenset[str],
    tolerance: float | None,
    seed: int,
    say: Progress,
) -> tuple[Prepared, Model]:
    """Load a case's model, make its files, inputs and expected outputs, and write them into ``folder``.

    Args:
        case: what is asked for; the precision of a given file that is in reduced precision becomes the case's.
        folder: empty.
        resolve: loads the model that the case names.
        files: which ONNX files are needed, of ``plain`` and ``portable``.
        tolerance: on each output's error over its scale; None: chosen by reference and precision.
        seed: of random inputs.
        say: called with the progress as text.

    Raises:
        UsageError, SourceError, ModelError: the model is not available.
        InputError: the user's inputs cannot be read.
    """
    say(f"loading {case.model}")
    found = resolve(case)
    loaded, given, own = found.loaded, found.file, found.precision
    if given is not None and case.precision not in ("fp32", own) and own != "fp32":
        raise UsageError(f"{given.name} is in {own} already; leave --precision out")
    case = replace(case, precision=own) if own != "fp32" else case
    hashes: dict[str, str] = {}
    if loaded is not None:
        hashes["weights"] = _save_weights(loaded, folder / _WEIGHTS)
        hashes["network"] = fingerprint_module(loaded)
        run, kind, seen = torch_reference(loaded)
        shapes, name, rule = loaded.input_shapes, loaded.name, loaded
    else:
        assert given is not None
        run, kind, seen, rule = file_reference(given, case)
        shapes, name = rule.input_shapes, given.stem
    feeds = Feeds(rule, given, case.inputs, seed)
    say(f"exporting {case.model}")
    made = ModelFiles()
    if files:
        calibration = partial(feeds.calibration, max(case.batch_sizes), made_up=case.precision == "int8")
        converted = own != "fp32"
        made = make_files(loaded, given, folder, files, case.precision, rule, calibration, given_is_converted=converted)
    if found.problem:
        made.problems["torch"] = found.problem
    hashes |= {name: _sha256(path) for name, path in made.made.items()}
    if any(name.endswith(" in int8") for name in made.build_s):
        hashes[CALIBRATION] = hash_arrays(feeds.samples(max(case.batch_sizes)))
    if given is not None:
        hashes["file"] = _sha256(given)
        if external_tensors(read_graph(given), given.parent):
            hashes["external data"] = content_hash(given)
    say(f"reference outputs of {name}")
    inputs_sha256 = {}
    for batch in case.batch_sizes:
        try:
            inputs = feeds.batch(batch)
            outputs = run(inputs)
        except MemoryError:
            raise ModelError(f"batch size {batch} of {name} does not fit into memory; use a smaller one") from None
        arrays: dict[str, Any] = {f"input_{index}": value for index, value in enumerate(inputs)}
        arrays |= {f"output_{index}": value for index, value in enumerate(outputs)}
        np.savez(folder / f"batch-{batch}.npz", **arrays)
        inputs_sha256[str(batch)] = hash_arrays(inputs)
    prepared = Prepared(
        folder=str(folder),
        name=name,
        source=None if loaded is None else loaded.metadata.source,
        source_weights=case.weights,
        input_shapes=shapes,
        precision=case.precision,
        plain=str(made.made["plain"]) if "plain" in made.made else None,
        portable=str(made.made["portable"]) if "portable" in made.made else None,
        problems=made.problems,
        batch_sizes=case.batch_sizes,
        may_flip=seen.nearest,
        cuts=made.cuts,
        preprocess=None if loaded is None else loaded.metadata.preprocess,
        scales=tuple(level.scale() for level in seen.levels),
    )
    notes = [] if loaded is None else [text for text in (loaded.warning, loaded.note) if text]
    notes += feeds.notes(max(case.batch_sizes))
    if own != "fp32":
        notes.append(f"the given file is in {own}, and so is everything else")
    elif case.precision == "int8" and not case.inputs and files:
        notes.append(
            "INT8 is calibrated on the samples that are fed, which is enough for timing; for deployment calibrate on "
            "your own images (bench --inputs, export --calibrate)"
        )
    if own == "int8" and CALIBRATION in hashes:
        notes.append(
            "the given file keeps its own INT8 calibration; the other file was calibrated here, on the samples that "
            "are fed"
        )
    if seen.alike:
        advice = "feed more than one sample" if feeds.repeats_one else "train it, or give --weights"
        notes.append(f"all samples of a batch have the same sampling grid, which favors the cache: {advice}")
    of_itself = loaded is None and own != "fp32"
    model = Model(
        name=name,
        case=case,
        input_shapes=shapes,
        inputs=feeds.described,
        inputs_sha256=inputs_sha256,
        reference=kind,
        tolerance=case.tolerance or tolerance or tolerance_of(kind, case.precision, seen.rounding, of_itself=of_itself),
        sha256=hashes,
        build_s=made.build_s,
        notes=tuple(notes),
    )
    return prepared, model


def hash_arrays(arrays: Sequence[Array]) -> str:
    """SHA-256 of types, shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _save_weights(loaded: LoadedModel, path: Path) -> str:
    """Write the weights; their hash, by name, type, shape and value."""
    import torch

    state = loaded.module.state_dict()
    content = io.BytesIO()
    torch.save(state, content)
    path.write_bytes(content.getbuffer())  # a full disk is an OSError here, and a RuntimeError in torch.save
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _numbered(stored: Any, name: str) -> tuple[Array, ...]:
    count = sum(key.startswith(f"{name}_") for key in stored.files)
    return tuple(stored[f"{name}_{index}"] for index in range(count))
