"""``config.pbtxt``: how Triton serves a model, in protobuf's text format (Triton's model_config.proto)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from stn_infer.backends.base import TensorSpec
from stn_infer.serving.service import THREADS, Service, data_type, served_shape

LABELS_FILE = "labels.txt"


@dataclass(frozen=True)
class Word:
    """A value that is written without quotes, such as the name of an enumeration's value."""

    text: str


def config_text(service: Service, folder: PurePosixPath) -> str:
    """The text of ``config.pbtxt``.

    Args:
        service: the model.
        folder: the absolute path of the model's folder where it is served, for the plugin library of the onnxruntime
            platform.

    Raises:
        UsageError: an input or output has a data type that Triton does not have.
    """
    return "".join(f"{line}\n" for line in _lines(_config(service, folder)))


def _config(service: Service, folder: PurePosixPath) -> dict[str, Any]:
    outputs = [_tensor(spec) for spec in service.outputs]
    if service.labels:
        outputs[0]["label_filename"] = LABELS_FILE
    outputs += [
        {"name": name, "data_type": Word(f"TYPE_{kind}"), "dims": [-1 if length is None else length]}
        for name, kind, length in service.added()
    ]
    # without a list, Triton uses the first profile only
    profiles = {"profile": list(map(str, range(service.profiles)))} if service.profiles > 1 else {}
    config: dict[str, Any] = {
        "name": service.name,
        "backend": service.platform,
        "max_batch_size": service.max_batch,
        "input": [_tensor(spec) for spec in service.inputs],
        "output": outputs,
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [
            {"count": service.instances, "kind": Word("KIND_GPU" if service.on_gpu else "KIND_CPU"), **profiles},
        ],
    }
    if service.joins:
        preferred = {} if service.preferred is None else {"preferred_batch_size": [service.preferred]}
        config["dynamic_batching"] = {**preferred, "max_queue_delay_microseconds": service.queue_delay}
    if service.warms:
        config["model_warmup"] = [_warmup(service, size) for size in sorted({1, service.max_batch})]
    if service.platform == "onnxruntime" and service.library:
        library = str(folder / service.library)
        config["model_operations"] = {"op_library_filename": [library]}
    threads = THREADS.get(service.platform)
    if threads is not None:
        config["parameters"] = [{"key": threads, "value": {"string_value": str(service.threads)}}]
    return config


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    dims = [-1 if length is None else length for length in served_shape(spec)[1:]]
    found: dict[str, Any] = {"name": spec.name, "data_type": Word(f"TYPE_{data_type(spec)}"), "dims": dims}
    if len(spec.shape) == 1:
        found["reshape"] = {"shape": []}
    return found


def _warmup(service: Service, size: int) -> dict[str, Any]:
    """A batch of zeros; the batch axis is not among an input's dims."""
    inputs = [
        {
            "key": spec.name,
            "value": {
                "data_type": Word(f"TYPE_{data_type(spec)}"),
                "dims": list(served_shape(spec)[1:]),
                "zero_data": True,
            },
        }
        for spec in service.inputs
    ]
    return {"name": f"batch of {size}", "batch_size": size, "inputs": inputs}


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The fields of a message; a list of messages is a repeated field."""
    for name, value in fields.items():
        messages = value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]
        for one in messages:
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(one, f"{indent}  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_value(one)}"


def _value(value: object) -> str:
    if isinstance(value, Word):
        return value.text
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    return str(value)


def quoted(text: str) -> str:
    """A string of protobuf's text format: whatever is not printable ASCII as the octal number of each byte."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'
