"""``run``: predict many inputs in batches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.api.source import EngineFile, OnnxModel, names_the_file
from stn_infer.backends.base import Backend
from stn_infer.backends.device import Device
from stn_infer.budget import Budget
from stn_infer.data.inputs import as_sources
from stn_infer.errors import AssumptionWarning, ModelError, UsageError
from stn_infer.pipeline.inference import RunSummary, run_job
from stn_infer.pipeline.plan import RunOptions
from stn_infer.pipeline.shards import Progress
from stn_infer.preprocess.rule import Preprocess
from stn_infer.progress import step
from stn_infer.remote import is_url
from stn_infer.sources.load import LoadedModel
from stn_infer.sources.reference import WeightsLike

if TYPE_CHECKING:
    from torch import nn

    from stn_infer.benchmarking.choice import Setting
    from stn_infer.cluster.spread import Shards


@names_the_file
def run(
    model: str | Path | nn.Module | LoadedModel | Backend,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    allow_code: bool = False,
    budget: Budget | None = None,
    backend: str = "ort",
    device: str = "cpu",
    devices: Sequence[str] | None = None,
    batch_size: int | None = None,
    format: str = "csv",
    resume: bool = False,
    check_inputs: bool = False,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    activation: str | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    outputs: Sequence[str] | None = None,
    workers: int | None = None,
    shard_rows: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    with_theta: bool = False,
    save_images: str | Path | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
) -> RunSummary:
    """Predict ``inputs`` and write predictions and status files into the folder ``output``.

    A sample that cannot be read, has the wrong size or makes the model return NaN does not stop the others: its row in
    the status file has the reason.

    Args:
        model: an ONNX file, an engine (with ``backend`` tensorrt or tensorrt-rtx), a module, any source that
            ``stn-infer export`` takes, or an open backend (then ``backend``, ``device`` and ``devices`` are ignored; on
            a CPU it should use one thread).
        inputs: files, folders, glob patterns, ``.npy``/``.npz`` files, URLs of these (``s3://``, ``gs://`` and whatever
            fsspec knows), ``@list.txt``, ``-`` for stdin.
        output: a folder or a URL (``s3://``, ``gs://``, ``abfs://``), new or empty unless ``resume``.
        weights: a checkpoint for a source, as for ``export``.
        input_shapes: the shapes of a source's inputs, as for ``export``.
        allow_code: as for ``export``.
        budget: as for ``lint``.
        backend: ``ort``, ``eager``, ``openvino``, ``tensorrt``, ``tensorrt-rtx``, or ``auto``: the backend, batch size
            and threads that ``best`` found for this very file on this machine; if there are none, ``ort`` with a
            warning (``errors.AssumptionWarning``).
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        devices: several instead of ``device``, which share the batches; the files are the same.
        batch_size: samples per call of the model; None: 64, or with ``auto`` what ``best`` found.
        format: ``csv``, ``jsonl``, ``parquet`` or ``npz``; only npz stores outputs that are not one vector per sample.
        resume: continue the job in ``output``; finished shards are kept. Everything that determines an output must be
            the same: model and its code, preprocessing, libraries' versions, and the inputs' names, sizes and
            modification times. The device and ``batch_size`` may differ.
        check_inputs: read all inputs first, so that a resumed job compares their contents instead of their times.
        preprocess: how images become inputs; as text, changes to the preprocessing in the model's file.
        labels: the name of each class; None: the labels in the model's file.
        activation: what turns scores into confidences: ``softmax``, ``sigmoid`` (classes do not exclude each other) or
            ``none``; None: as the model's file says, or its last operator, or else a softmax. A model that applies it
            itself gets no second one.
        top_k: also list this many classes, best first.
        threshold: with ``sigmoid``: the least confidence of a class that is listed; None: 0.5, or none with ``top_k``.
        outputs: the names of the model's outputs that are stored, possibly none; None: all.
        workers: threads; None: one per core.
        shard_rows: samples per shard; None: 4096, or fewer if outputs are large.
        strict: an error instead of a warning (``errors.AssumptionWarning``) where the preprocessing has to be assumed.
        overwrite: replace the job in ``output``, and its pictures in ``save_images``. A folder with other files is an
            error.
        with_theta: also predict theta [N, D, K] of every spatial transformer of a file that has no such output.
        save_images: a folder, new or empty unless ``resume`` or ``overwrite``, for the warped images and for the inputs
            with the sampled regions and the prediction; see :mod:`stn_infer.pipeline.pictures`.
        ray: spread the shards over a Ray cluster: its address ``HOST:PORT``, ``auto`` for the one that runs on this
            machine, or ``local`` to start one here for this job. The predictions are the same. Each worker has one
            GPU (``device`` cuda) or ``workers`` CPUs (one), and runs an ONNX file or an engine. Inputs and ``output``
            are on a file system of all nodes, or URLs. A shard whose process ends, or that fails otherwise, is tried
            3 times; its inputs are then failed.
        progress: called with (samples done, total samples) after each batch, by one worker at a time; on a cluster
            after each shard.

    Raises:
        UsageError: options that cannot be combined or do not fit the model, or inputs that are no paths.
        InputError: there is no input, or an explicitly named input is missing.
        OutputError: the folder is not empty or contains another job, or it cannot be written.
        SourceError, ModelError, ExportError, MissingDependencyError: the model cannot be loaded or run.
        ClusterError: the cluster cannot be reached, has no room for a worker, or a worker differs from the others in
            versions, the plugin library or its CPU, or does not see the inputs or the output.
    """
    sources = as_sources(inputs)
    options = RunOptions(
        batch_size=64 if batch_size is None else batch_size,
        format=format,
        resume=resume,
        check_inputs=check_inputs,
        preprocess=preprocess,
        labels=labels,
        activation=activation,
        top_k=top_k,
        threshold=threshold,
        outputs=outputs,
        workers=workers,
        shard_rows=shard_rows,
        strict=strict,
        overwrite=overwrite,
        save_images=None if save_images is None else Path(save_images),
    )
    model_sha256 = ""
    tried: tuple[str, ...] = ()
    spread: Shards | None = None
    if save_images is not None and is_url(str(save_images)):
        raise UsageError(f"--save-images takes a folder of this machine, not {save_images}")
    if ray is not None:
        _check_for_cluster(ray, model, backend, devices, save_images)
    with ExitStack() as stack:
        if not isinstance(model, Backend):
            from stn_infer.api.fingerprint import fingerprint
            from stn_infer.api.open import exported, open_backend
            from stn_infer.api.source import resolve
            from stn_infer.backends.several import SeveralBackends

            found = resolve(model, weights=weights, input_shapes=input_shapes, allow_code=allow_code, budget=budget)
            model_sha256 = fingerprint(found)
            tried = found.batch_dependent if isinstance(found, OnnxModel) else ()
            chosen = [] if ray is not None else _devices(device, devices)
            per_call = 1  # threads on a CPU
            if backend == "auto":
                setting = _best_setting(found, model_sha256, chosen[0])
                backend = "ort" if setting is None else setting.backend
                if setting is not None and batch_size is None:
                    options = replace(options, batch_size=setting.batch_size)
                if setting is not None and workers is None and chosen[0] == "cpu":
                    per_call, options = setting.threads, replace(options, callers=setting.callers)
            if len(chosen) > 1 and save_images is not None:
                raise UsageError(f"--save-images takes one device, given {', '.join(chosen)}")
            opened: str | Path | bytes | nn.Module | LoadedModel = found if isinstance(found, LoadedModel) else model
            shapes = None if isinstance(found, LoadedModel) else input_shapes
            if isinstance(found, LoadedModel) and backend == "ort" and len(chosen) > 1:
                opened = exported(found)  # once for all
            runners = []
            for target in chosen:
                threads = None if target.startswith("cuda") else per_call
                if with_theta or save_images is not None:
                    from stn_infer.api.watched import open_watched

                    images = save_images is not None
                    one = open_watched(found, backend, target, threads, budget, with_theta=with_theta, images=images)
                else:
                    one = open_backend(
                        opened, backend, target, threads, input_shapes=shapes, budget=budget, graphs=True
                    )
                runners.append(one)
                stack.callback(one.close)
            if ray is None:
                runner: Backend = runners[0] if len(runners) == 1 else SeveralBackends(runners)
            else:
                from stn_infer.api.cluster.model import sent
                from stn_infer.cluster.session import connected
                from stn_infer.cluster.spread import Shards

                content = sent(found, model_sha256, backend, device, budget, with_theta=with_theta)
                module = stack.enter_context(connected(ray, content.size))
                spread = Shards.open(module, content, options, device)
                stack.callback(spread.close)
                runner = spread.described
        elif weights is not None or input_shapes is not None or with_theta:
            raise UsageError(
                "the backend is already open; pass weights, input shapes and with_theta where it is opened"
            )
        else:
            runner = model
        summary = run_job(
            runner,
            sources,
            output,
            options,
            model=Path(model).name if isinstance(model, (str, Path)) else runner.metadata.source,
            model_sha256=model_sha256,
            progress=progress,
            environment=None if spread is None else spread.described.environment,
            spread=spread,
        )
        # a third-party file has no such metadata, but was tried
        dependent = summary.batch_dependent or (tried if options.batch_size > 1 else ())
        return replace(summary, batch_dependent=dependent)


def _best_setting(found: OnnxModel | EngineFile | LoadedModel, sha256: str, device: str) -> Setting | None:
    """What ``best`` stored for a model; None, with a warning, if that is nothing.

    Raises:
        UsageError: an engine, which runs in its own runtime only.
    """
    from stn_infer.benchmarking.stored import find

    if isinstance(found, EngineFile):
        raise UsageError("an engine runs in its own runtime: give --backend tensorrt or tensorrt-rtx instead of auto")
    try:
        if not isinstance(found, OnnxModel):
            raise ModelError("`stn-infer best` stores choices for the ONNX files that it measures, not for sources")
        setting = find(sha256, str(Device.parse(device)))
    except ModelError as error:
        warnings.warn(f"--backend auto runs the model in ort: {error}", AssumptionWarning, stacklevel=3)
        return None
    step(f"running as `stn-infer best` chose: {setting}")
    return setting


def _check_for_cluster(
    address: str, model: object, backend: str, devices: Sequence[str] | None, save_images: str | Path | None
) -> None:
    """Raises UsageError for what a cluster does not do, before anything is opened."""
    from stn_infer.cluster.session import check_address

    check_address(address)
    if isinstance(model, Backend):
        raise UsageError("an open backend cannot be sent to a cluster; give the model's file or source")
    if backend == "auto":
        raise UsageError("--backend auto is what was measured on this machine; on a cluster name the backend")
    if devices is not None:
        raise UsageError("--devices are those of this machine; on a cluster give --device cuda, and Ray chooses")
    if save_images is not None:
        raise UsageError("--save-images does not work on a cluster; run it without --ray on some of the inputs")


def _devices(device: str, devices: Sequence[str] | None) -> list[str]:
    """The devices to run on.

    Raises:
        UsageError: ``device`` and ``devices`` are given, or a GPU twice, or none.
    """
    if devices is None:
        return [device]
    if device != "cpu":
        raise UsageError(f"expected one device or several, given device {device} and devices {', '.join(devices)}")
    names = [str(Device.parse(name)) for name in devices]
    twice = next((name for name in names if name != "cpu" and names.count(name) > 1), None)
    if twice is not None or not names:
        raise UsageError(f"expected different GPUs in devices, given {f'{twice} twice' if twice else 'none'}")
    return names
