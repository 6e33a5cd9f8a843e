"""``triton``: write a model as a folder that Triton Inference Server serves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from stn_infer.api.engines.paths import check_engine
from stn_infer.api.open import exported, open_resolved
from stn_infer.api.source import OnnxModel, declared_batch, names_the_file, resolve_model
from stn_infer.budget import Budget
from stn_infer.errors import UsageError
from stn_infer.files import temporary_folder
from stn_infer.printing import Printed, shown
from stn_infer.proto.inputs import plan_inputs
from stn_infer.serving.check import Checked, check_service
from stn_infer.serving.plan import (
    MAX_BATCH,
    check_batch,
    classified,
    describe,
    load_engine_of,
    profiled,
    tried,
    with_library,
)
from stn_infer.serving.readme import start_line
from stn_infer.serving.repository import check_name, check_place, name_from, write_model
from stn_infer.serving.server import find_server
from stn_infer.serving.service import PLATFORMS, Platform, Service
from stn_infer.sources.reference import WeightsLike

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TritonReport(Printed):
    """The result of ``triton``; as text, what the command prints.

    Attributes:
        path: the model's folder in the repository.
        start: the command that starts a server.
        notes: what a user should know, such as a missing plugin library.
        checked: what a real server answered; None: none was asked.
    """

    path: Path
    start: str
    notes: tuple[str, ...] = ()
    checked: Checked | None = None

    def lines(self) -> list[str]:
        """The notes, the folder, what a server answered, and how to start one."""
        checked = [] if self.checked is None else [str(self.checked)]
        return [*(f"note: {note}" for note in self.notes), f"wrote {self.path}", *checked, f"start: {self.start}"]


@names_the_file
def triton(
    model: str | Path | nn.Module,
    repository: str | Path,
    *,
    name: str | None = None,
    platform: Platform = "python",
    device: Literal["cpu", "cuda"] = "cpu",
    engine: str | Path | None = None,
    max_batch: int | None = None,
    queue_delay: int = 0,
    instances: int = 1,
    threads: int | None = None,
    top_k: int | None = None,
    labels: Sequence[str] | None = None,
    activation: str | None = None,
    served_at: str | Path | None = None,
    overwrite: bool = False,
    check: bool = False,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    allow_code: bool = False,
    budget: Budget | None = None,
) -> TritonReport:
    """Write a model's folder into a Triton repository: the model, its config.pbtxt, the plugin library and a README.

    With a file whose graph preprocesses pictures (``export --embed-preprocess``), clients send uint8 pictures. The
    Python platform answers with the outputs and, for a model with classes, with prediction, label and confidence.

    Args:
        model: an ONNX file, a module, or any source that ``stn-infer export`` takes.
        repository: the repository's folder; made if it is not there.
        name: the model's name there; None: the file's or the source's.
        platform: ``python`` (onnxruntime in Triton's Python backend), ``onnxruntime`` or ``tensorrt``.
        device: ``cpu`` or ``cuda``, on the server; the platform tensorrt is always on GPUs.
        engine: for ``tensorrt``: the engine of ``model``, from ``build`` or trtexec.
        max_batch: the largest batch; None: 64, or the engine's.
        queue_delay: microseconds that a request waits for others to join its batch.
        instances: of the model, for each GPU or on the CPU.
        threads: of each instance on a CPU; None: one per core for a single instance, else 1.
        top_k: the number of classes in each prediction of the Python platform, best first; None: 1, or
            with a sigmoid all.
        labels: the name of each class; None: as the file says.
        activation: ``softmax``, ``sigmoid`` or ``none``; None: as the file says, or its last operator.
        served_at: the repository's absolute path where it is served; None: its path here.
        overwrite: replace a model of that name.
        check: before it is written, serve it by a ``tritonserver`` of this machine, and compare its answers with those
            of ``run``.
        weights, input_shapes, allow_code: of a source, as for ``export``.
        budget: as for ``lint``.

    Raises:
        UsageError: options that do not fit each other or the model, such as a fixed batch size.
        OutputError: the repository has a model of that name, or cannot be written.
        MissingDependencyError: ``check`` without a server.
        VerificationError: the server's answers differ from those of ``run``.
        SourceError, ModelError, ExportError: the model or its engine cannot be loaded, or the server does not serve it.
    """
    _check_options(platform, device, engine, threads)
    _check_numbers(instances=instances, threads=threads, top_k=top_k, max_batch=max_batch, queue_delay=queue_delay)
    place = Path(os.path.abspath(repository))
    chosen = name or name_from(Path(model).stem if isinstance(model, (str, Path)) else type(model).__name__)
    check_name(chosen)
    check_place(place, chosen, overwrite=overwrite)
    at = PurePosixPath(place if served_at is None else served_at) / chosen
    if not at.is_absolute():
        raise UsageError(f"the repository's place on the server is an absolute path, not {str(served_at)!r}")
    try:
        str(at).encode()
    except UnicodeEncodeError:
        raise UsageError(f"the server's files name the path {shown(str(at))}, which is not UTF-8; rename it") from None
    if check:
        find_server()
    found = resolve_model(model, weights=weights, input_shapes=input_shapes, allow_code=allow_code, budget=budget)
    source = found if isinstance(found, OnnxModel) else OnnxModel(exported(found))
    graph, notes = source.read(), list[str]()
    with closing(open_resolved(source, "ort")) as backend:
        service = Service(
            name=chosen,
            platform=platform,
            on_gpu=platform == "tensorrt" or device == "cuda",
            inputs=backend.inputs,
            outputs=backend.outputs,
            max_batch=max_batch or MAX_BATCH,
            queue_delay=queue_delay,
            instances=instances,
            threads=threads if threads is not None else 0 if instances == 1 else 1,
        )
        check_batch(service, declared_batch(graph))
        dependent = backend.metadata.batch_dependent or source.batch_dependent
        if dependent:
            notes.append(f"requests are not joined: {', '.join(dependent)} depend on the other samples of a batch")
            service = replace(service, joins=False)
        service = classified(service, backend, top_k, labels, activation)
        stored, sidecar = source.content, None
        if engine is not None:
            check_engine(Path(engine))
            stored, sidecar = load_engine_of(Path(engine), source.load())
            service = profiled(service, sidecar, max_batch)
            if sidecar is None and max_batch is None:
                notes.append(f"{engine} has no sidecar with its profile: batches of up to {MAX_BATCH} are assumed")
        service = tried(service, backend, notes)
        service, libraries = with_library(service, graph, sidecar, engine is not None, notes)
        if backend.metadata.preprocess is not None and backend.metadata.embedded is None:
            notes.append("clients send preprocessed inputs; a file of `export --embed-preprocess` takes pictures")

        checked, of_engine = None, "" if sidecar is None else describe(sidecar)
        if check:
            with temporary_folder() as scratch:
                write_model(scratch / "models", service, stored, libraries, engine=of_engine)
                checked = check_service(scratch / "models", service, plan_inputs(graph), backend)
        path = write_model(place, service, stored, libraries, folder=at, engine=of_engine, overwrite=overwrite)
    return TritonReport(path, start_line(service, at), tuple(notes), checked)


def _check_options(platform: str, device: str, engine: str | Path | None, threads: int | None) -> None:
    """Check what needs no model.

    Raises:
        UsageError: they do not fit each other.
    """
    if platform not in PLATFORMS:
        raise UsageError(f"a platform is one of {', '.join(PLATFORMS)}, not {platform!r}")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"the device on the server is cpu or cuda, not {device!r}")
    if platform == "tensorrt" and engine is None:
        raise UsageError(
            "the platform tensorrt serves an engine: build it on a GPU like the server's (stn-infer build MODEL -o "
            "model.engine), and give it with --engine"
        )
    if platform != "tensorrt" and engine is not None:
        raise UsageError(f"an engine is for the platform tensorrt, not {platform}")
    if platform == "tensorrt" and threads is not None:
        raise UsageError("threads are for models on a CPU; omit them for the platform tensorrt")


def _check_numbers(**numbers: Any) -> None:
    """Check that each is a whole number in its range; None is the default.

    Raises:
        UsageError: one is not.
    """
    for what, value in numbers.items():
        least = 0 if what in ("threads", "queue_delay") else 1
        if value is not None and (isinstance(value, float) or value < least):
            raise UsageError(f"{what} is a whole number of at least {least}, not {value}")
