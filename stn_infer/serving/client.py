"""Requests to a server over HTTP: the KServe v2 protocol with its binary tensor extension."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.errors import ModelError, one_line
from stn_infer.serving.service import DATA_TYPES

_LENGTH = "Inference-Header-Content-Length"


class Client:
    """Asks a server on this machine.

    Args:
        port: of its HTTP service.
        timeout: seconds for each request.
    """

    def __init__(self, port: int, timeout: float) -> None:
        self._port, self._timeout = port, timeout

    def get(self, path: str) -> dict[str, Any] | None:
        """What the server answers to a GET request, ``{}`` if nothing; None if it does not answer with success.

        A server of another kind, whose answers are not JSON, may have the port.
        """
        try:
            status, _, body = self.ask("GET", path)
            found = json.loads(body or b"{}") if status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def infer(self, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name for inputs by name, batch on axis 0; strings are arrays of bytes.

        Raises:
            ModelError: the server answers with an error, or not in time.
        """
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        header = {
            "inputs": [
                {
                    "name": name,
                    "shape": array.shape,
                    "datatype": DATA_TYPES[array.dtype.name],
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in arrays.items()
            ],
            "parameters": {"binary_data_output": True},
        }
        text = json.dumps(header).encode()
        content = text + b"".join(array.tobytes() for array in arrays.values())
        try:
            status, length, body = self.ask("POST", f"/v2/models/{model}/infer", content, {_LENGTH: str(len(text))})
        except (OSError, http.client.HTTPException) as error:
            raise ModelError(f"the server does not answer: {one_line(error)}") from None
        if status != 200:
            raise ModelError(f"the server answers {status}: {_reason(body)}")
        return _outputs(body, length)

    def ask(
        self, method: str, path: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, int, bytes]:
        """The status of an answer, the length of the JSON at the start of its body, and the body.

        Raises:
            OSError, http.client.HTTPException: there is no answer.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout)
        try:
            connection.request(method, path, content, dict(headers or {}))
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, int(answer.headers.get(_LENGTH, len(body))), body
        finally:
            connection.close()


def _outputs(body: bytes, length: int) -> dict[str, Array]:
    types = {name: np.dtype(dtype) for dtype, name in DATA_TYPES.items()}
    found, at = {}, length
    for output in json.loads(body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        data, at = body[at : at + size], at + size
        kind = output["datatype"]
        values = _strings(data) if kind == "BYTES" else np.frombuffer(data, types[kind])
        found[output["name"]] = values.reshape(output["shape"])
    return found


def _strings(data: bytes) -> Array:
    """Strings, each after its length in four bytes."""
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return np.array(found, object)


def _reason(body: bytes) -> str:
    try:
        return one_line(str(json.loads(body)["error"]))
    except (ValueError, KeyError, TypeError):
        return one_line(body.decode(errors="replace"))
