"""Clients of a Triton server, for a Python that has tritonclient: ``python triton_client.py WHAT PORT MODEL ...``.

``http`` and ``grpc`` with INPUTS.npz ANSWER.npz ask once. ``load`` with INPUTS.npz CLIENTS SECONDS asks for single
samples from several clients at once and prints as JSON the number of requests per second, the median and 99th
percentile of their milliseconds, and how many answers differed from the first one to the same sample.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import numpy as np


def module_of(protocol: str) -> Any:
    if protocol == "grpc":
        import tritonclient.grpc as triton
    else:
        import tritonclient.http as triton
    return triton


def asked(triton: Any, client: Any, model: str, arrays: dict[str, Any]) -> Any:
    inputs = []
    for name, array in arrays.items():
        kind = triton.InferInput(name, array.shape, {"float32": "FP32", "uint8": "UINT8"}[array.dtype.name])
        kind.set_data_from_numpy(array)
        inputs.append(kind)
    return client.infer(model, inputs)


def once(protocol: str, port: str, model: str, given: str, answer: str) -> None:
    triton = module_of(protocol)
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    found = asked(triton, client, model, dict(np.load(given)))
    response = found.get_response()
    outputs = response["outputs"] if protocol == "http" else response.outputs
    names = [output["name"] if protocol == "http" else output.name for output in outputs]
    arrays = {name: found.as_numpy(name) for name in names}
    texts = {name: values.astype("S") for name, values in arrays.items() if values.dtype == object}
    np.savez(answer, **{**arrays, **texts})


def load(port: str, model: str, given: str, clients: str, seconds: str) -> None:
    triton = module_of("grpc")
    arrays = dict(np.load(given))
    count = len(next(iter(arrays.values())))
    samples = [{name: values[i : i + 1] for name, values in arrays.items()} for i in range(count)]
    first: dict[int, Any] = {}
    wrong, times, lock = [0], [], threading.Lock()
    end = time.perf_counter() + float(seconds)

    def work(number: int) -> None:
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        turn = number
        while time.perf_counter() < end:
            begun = time.perf_counter()
            found = asked(triton, client, model, samples[turn % count]).as_numpy("output")
            took = time.perf_counter() - begun
            with lock:
                times.append(took)
                wrong[0] += not np.array_equal(first.setdefault(turn % count, found), found)
            turn += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(int(clients))]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begun
    median, slow = (float(value) for value in np.percentile(np.array(times) * 1e3, (50, 99)))
    rate = len(times) / spent
    print(json.dumps({"rate": rate, "p50": median, "p99": slow, "requests": len(times), "wrong": wrong[0]}))


if __name__ == "__main__":
    if sys.argv[1] == "load":
        load(*sys.argv[2:])
    else:
        once(*sys.argv[1:])
