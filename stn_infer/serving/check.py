"""Serves a model's repository in a real server, and compares its answers with those of ``run``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import Backend
from stn_infer.deviation import compare, worst
from stn_infer.errors import ModelError, VerificationError
from stn_infer.predictions import Classifier
from stn_infer.progress import step
from stn_infer.proto.inputs import InputPlan, random_feeds
from stn_infer.serving.client import Client
from stn_infer.serving.server import serving
from stn_infer.serving.service import EXAMPLE_SIZE, Service, served_shape

TOLERANCE = 1e-5  # of an output's scale, as for `verify`
_SEED = 7


@dataclass(frozen=True)
class Checked:
    """What a server answered.

    Attributes:
        version: of Triton.
        batches: the batch sizes that were asked for.
        max_error: the largest error of an output over its scale; 0: all bits are equal.
    """

    version: str
    batches: tuple[int, ...]
    max_error: float

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batches))
        same = "equal run's to the last bit" if not self.max_error else f"differ from run's by {self.max_error:.2g}"
        return f"checked in Triton {self.version}: answers to batches of {sizes} {same}"


def check_service(
    repository: Path, service: Service, plans: tuple[InputPlan, ...], backend: Backend, seconds: float = 60
) -> Checked:
    """Start a server, ask it for random inputs, and stop it.

    Args:
        repository: the repository that has the model.
        service: what it serves.
        plans: the model's inputs.
        backend: the same model as ``run`` opens it.
        seconds: the server's time to get ready in, and to answer a request in.

    Raises:
        MissingDependencyError: no server is installed.
        ModelError: the server does not serve the model, or answers with an error; or the model returns NaN.
        VerificationError: an answer differs from that of ``run`` by more than the tolerance.
    """
    sizes = tuple(sorted({1, min(3, service.max_batch), service.max_batch}))
    generator = np.random.default_rng(_SEED)
    feeds = [random_feeds(plans, size, EXAMPLE_SIZE, generator) for size in sizes]
    expected = [backend.run(inputs) for inputs in feeds]
    for outputs in expected:
        for name, values in outputs.items():
            if values.dtype.kind == "f" and np.isnan(values).any():
                raise ModelError(f"output {name!r} has NaN for random inputs, so that nothing can be compared")
    step(f"serving {service.name} by tritonserver for a trial")
    with serving(repository, [service.name], seconds) as running:
        client = Client(running.http, seconds)
        answers = [client.infer(service.name, _served(service, inputs)) for inputs in feeds]
    pairs = list(zip(expected, answers, strict=True))
    found = worst(
        compare(name, values, answer[name].reshape(values.shape))
        for outputs, answer in pairs
        for name, values in outputs.items()
    )
    for deviation in found:
        if deviation.scaled > TOLERANCE:
            raise VerificationError(
                f"the server's output {deviation.name!r} differs from run's by {deviation.scaled:.2g} of its scale, "
                f"more than {TOLERANCE:g}"
            )
    for _, answer in pairs:
        _check_classes(service, answer)
    return Checked(running.version, sizes, max(deviation.scaled for deviation in found))


def _served(service: Service, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs in the shapes that clients send."""
    ranks = {spec.name: len(served_shape(spec)) for spec in service.inputs}
    return {name: array.reshape(*array.shape, *[1] * (ranks[name] - array.ndim)) for name, array in inputs.items()}


def _check_classes(service: Service, answer: Mapping[str, Array]) -> None:
    """Check that the server ranks its own scores as ``run`` would.

    Raises:
        VerificationError: it does not.
    """
    classes = service.classes
    if classes is None:
        return
    ranked = Classifier(classes.scores, classes.labels or None, classes.top_k).rank(answer[service.outputs[0].name])
    wanted: dict[str, Array] = {"prediction": ranked.order, "confidence": ranked.values}
    if classes.labels:
        wanted["label"] = np.array([label.encode() for label in classes.labels], object)[ranked.order]
    for what, name in classes.names.items():
        if not np.array_equal(wanted[what], answer[name]):
            raise VerificationError(f"the server's output {name!r} differs from the {what} that run gives")
