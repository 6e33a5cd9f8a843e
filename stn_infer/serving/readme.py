"""The README in a model's folder: what is served, and the lines that start, ask and load the server."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

from stn_infer.arrays import shape_text
from stn_infer.backends.base import TensorSpec
from stn_infer.predictions import THRESHOLD
from stn_infer.printing import markdown_cell, shown
from stn_infer.serving.service import (
    ALL_CLASSES,
    EXAMPLE_SIZE,
    REGISTER_FILE,
    THREADS,
    Service,
    data_type,
    served_shape,
)

_PARTS = {
    "python": "It runs in onnxruntime in Triton's Python backend, whose Python needs `pip install numpy {package}`",
    "onnxruntime": "It runs in Triton's onnxruntime backend",
    "tensorrt": "It runs in Triton's TensorRT backend",
}


def start_line(service: Service, folder: PurePosixPath) -> str:
    """The command that starts a server with a model's repository, whose place there is the parent of ``folder``."""
    line = f"tritonserver --model-repository={shlex.quote(str(folder.parent))}"
    if service.platform == "tensorrt" and service.library:
        line += f" --backend-config=tensorrt,plugins={shlex.quote(str(folder / REGISTER_FILE))}"
    return line


def readme_text(service: Service, folder: PurePosixPath, engine: str = "") -> str:
    """The text of ``README.md``.

    Args:
        service: the model.
        folder: the absolute path of the model's folder where it is served.
        engine: what an engine needs, as the end of a sentence; empty: nothing is known.
    """
    package = "onnxruntime-gpu" if service.on_gpu else "onnxruntime"
    mount = shlex.quote(f"{folder.parent}:{folder.parent}")
    runs = _PARTS[service.platform].format(package=package)
    parts = [
        f"# {markdown_cell(service.name)}",
        f"Written by stn-infer. {runs}.",
        f"The engine {markdown_cell(engine)}." if engine else "",
        _tensors(service),
        "## Start\n```sh\n" + start_line(service, folder) + "\n```",
        f"In a container, mount the repository at the same path: `docker run --shm-size=1g -p 8000:8000 -p 8001:8001 "
        f"-v {mount} IMAGE ...`, with `--gpus=all` for GPUs.",
        "## Request\n`pip install 'tritonclient[http]'`\n```python\n" + _request(service) + "```",
        _predictions(service),
        "## Load\n`pip install perf-analyzer`, or Triton's SDK container:\n```sh\n"
        f"perf_analyzer -m {service.name} -u localhost:8001 -i grpc --concurrency-range 1:8{_shapes(service)}\n```",
        f"{EXAMPLE_SIZE} stands for each dynamic size in these examples." if _shapes(service) else "",
        _batches(service),
        _threads(service),
        "## Another version\nWrite it to another repository, and move its folder `1` here as `2`: the newest version "
        "is served (`--model-control-mode=poll`, or a load request to the server).",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _tensors(service: Service) -> str:
    rows = [("input", spec.name, data_type(spec), shape_text(served_shape(spec))) for spec in service.inputs]
    rows += [("output", spec.name, data_type(spec), shape_text(served_shape(spec))) for spec in service.outputs]
    rows += [("output", name, kind, shape_text((None, length))) for name, kind, length in service.added()]
    lines = (
        f"| {what} | {markdown_cell(name)} | {kind} | {markdown_cell(shape)} |" for what, name, kind, shape in rows
    )
    return "\n".join(["| | name | type | shape |", "|---|---|---|---|", *lines])


def _request(service: Service) -> str:
    lines = ["import numpy as np", "import tritonclient.http as triton", ""]
    names = []
    for index, spec in enumerate(service.inputs):
        name = "given" if len(service.inputs) == 1 else f"given_{index}"
        names.append(name)
        shape = (1, *_sizes(spec))
        kind = "bool" if spec.dtype.kind == "b" else spec.dtype.name
        lines += [
            f"array = np.zeros({shape}, np.{'bool_' if kind == 'bool' else kind})",
            f"{name} = triton.InferInput({spec.name!r}, array.shape, {data_type(spec)!r})",
            f"{name}.set_data_from_numpy(array)",
        ]
    lines += [
        'client = triton.InferenceServerClient("localhost:8000")',
        f"answer = client.infer({service.name!r}, [{', '.join(names)}])",
        *(f"print(answer.as_numpy({name!r}))" for name in _shown(service)),
    ]
    return "\n".join(lines) + "\n"


def _shown(service: Service) -> list[str]:
    return [name for name, _, _ in service.added()] or [service.outputs[0].name]


def _predictions(service: Service) -> str:
    if service.classes is not None:
        names = {what: f"`{name}`" for what, name in service.classes.names.items()}
        count = service.classes.top_k
        if count == 1:
            what, name, confidence = "is the class with the highest score", "its name", "its confidence"
        else:
            every = count in (service.outputs[0].shape[1], ALL_CLASSES)
            which = "all classes" if every else f"the {count} best classes"
            what, name, confidence = f"has {which}, best first", "their names", "their confidences"
        label = f", {names['label']} {name}" if "label" in names else ""
        found = f"{names['prediction']} {what}{label}, and {names['confidence']} {confidence}"
        if service.classes.scores.activation != "sigmoid":
            return f"{found}, as `stn-infer run` gives them."
        return f"{found}. Any number of classes can be right: `stn-infer run` lists those of at least {THRESHOLD:g}."
    if service.labels:
        return (
            "`triton.InferRequestedOutput(name, class_count=3)` asks for the three best classes of the first output as "
            "`score:class:label`; the scores are the model's own."
        )
    return ""


def _batches(service: Service) -> str:
    if not service.joins:
        return (
            "Requests are not joined to batches: an output for a sample depends on the other samples of its batch. "
            f"A request has up to {service.max_batch} samples."
        )
    return (
        f"Requests that arrive while all instances work are joined to batches of up to {service.max_batch}; "
        "`max_queue_delay_microseconds` in `config.pbtxt` lets requests wait for others before that."
    )


def _threads(service: Service) -> str:
    name = THREADS.get(service.platform)
    if name is None or service.on_gpu:
        return ""
    return (
        f"`{name}` in `config.pbtxt` is the number of threads of each instance; 0 is one per core of the machine, "
        "which may be more than a container has."
    )


def _shapes(service: Service) -> str:
    return "".join(f" --shape {_shape(spec)}" for spec in service.inputs if None in spec.shape[1:])


def _shape(spec: TensorSpec) -> str:
    return shlex.quote(f"{shown(spec.name)}:{','.join(map(str, _sizes(spec)))}")


def _sizes(spec: TensorSpec) -> list[int]:
    """A sample's sizes in the examples."""
    return [EXAMPLE_SIZE if length is None else length for length in served_shape(spec)[1:]]
