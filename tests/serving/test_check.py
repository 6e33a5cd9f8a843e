"""The comparison of a server's answers with those of `run`; a stand-in for the server answers in its shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stn_infer.activation import Scores
from stn_infer.arrays import Array
from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import ModelError, VerificationError
from stn_infer.proto.inputs import plan_inputs
from stn_infer.serving import check as check_module
from stn_infer.serving.check import Checked, check_service
from stn_infer.serving.server import Running
from stn_infer.serving.service import Classes, Service
from tests.support.onnx_files import make
from tests.support.served_models import LABELS, classifier, single_values

Answer = dict[str, Array]


def checked(
    model: onnx.ModelProto,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Answer], Answer] = lambda answer: answer,
    labels: Sequence[str] = (),
) -> Checked:
    """What the comparison says of a server that has the model, whose answers ``change`` may alter."""
    with closing(OrtBackend(model.SerializeToString(), "cpu", 1)) as backend:
        classes = Classes.of(backend.outputs, Scores(), 2, labels) if labels else None
        service = Service(
            name="m", inputs=backend.inputs, outputs=backend.outputs, classes=classes, labels=tuple(labels)
        )

        class Server:
            def __init__(self, port: int, timeout: float) -> None:
                assert port == 1

            def infer(self, name: str, inputs: Mapping[str, Array]) -> Answer:
                assert name == "m" and all(array.ndim >= 2 for array in inputs.values())
                given = {spec.name: inputs[spec.name] for spec in backend.inputs}
                for spec in backend.inputs:
                    if len(spec.shape) == 1:
                        assert given[spec.name].shape[1:] == (1,)
                        given[spec.name] = given[spec.name][:, 0]
                found = backend.run(given)
                if classes is not None:
                    scores = found["scores"]
                    order = np.argsort(-scores, axis=1)[:, :2]
                    shares = np.exp(scores.astype(np.float64))
                    shares /= shares.sum(axis=1, keepdims=True)
                    found |= {"prediction": order, "label": np.array([it.encode() for it in labels], object)[order]}
                    found["confidence"] = np.take_along_axis(shares, order, axis=1)
                answer = {key: values[:, None] if values.ndim == 1 else values for key, values in found.items()}
                return change(answer)

        @contextmanager
        def serving(repository: Path, models: Sequence[str], seconds: float) -> Iterator[Running]:
            yield Running(1, 2, "2.0")

        monkeypatch.setattr(check_module, "serving", serving)
        monkeypatch.setattr(check_module, "Client", Server)
        return check_service(Path("models"), service, plan_inputs(model), backend)


def test_inputs_of_one_value_per_sample_have_an_axis_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(single_values(), monkeypatch) == Checked("2.0", (1, 3, 64), 0.0)


def test_an_answer_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(answer: Answer) -> Answer:
        return {**answer, "same": answer["same"] + np.float32(1e-3)}

    with pytest.raises(VerificationError, match=r"the server's output 'same' differs from run's by .* of its scale"):
        checked(single_values(), monkeypatch, shifted)


@pytest.mark.parametrize("what", ["prediction", "label"])
def test_classes_in_another_order(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def reversed_(answer: Answer) -> Answer:
        return {**answer, what: answer[what][:, ::-1]}

    with pytest.raises(VerificationError, match=f"the server's output '{what}' differs from the {what} that run gives"):
        checked(classifier(), monkeypatch, reversed_, LABELS)


def test_a_model_that_returns_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["less"], name="neg"),
        helper.make_node("Sqrt", ["less"], ["y"], name="root"),
    ]
    shape = (TensorProto.FLOAT, ["n", 9])
    with pytest.raises(ModelError, match="output 'y' has NaN for random inputs, so that nothing can be compared"):
        checked(make(nodes, {"x": shape}, {"y": shape}, []), monkeypatch)
