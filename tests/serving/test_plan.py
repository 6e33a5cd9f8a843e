"""How a service is fitted to its model, and the models that Triton cannot serve."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from stn_infer.activation import Scores
from stn_infer.backends.base import TensorSpec
from stn_infer.backends.ort import OrtBackend
from stn_infer.backends.tensorrt.engine_cache import EngineKey, InputProfile, Sidecar, write_engine
from stn_infer.backends.tensorrt.identity import hashes
from stn_infer.errors import MissingDependencyError, ModelError, UsageError
from stn_infer.fusion.fuse import fuse
from stn_infer.serving.plan import check_batch, classified, describe, load_engine_of, profiled, tried, with_library
from stn_infer.serving.readme import readme_text
from stn_infer.serving.service import ALL_CLASSES, Service
from tests.support.onnx_files import affine_model
from tests.support.served_models import LABELS, classifier

FLOAT = np.dtype(np.float32)
X = TensorSpec("x", (None, 3), FLOAT)
ENGINE = b"engine"


def service_of(backend: OrtBackend) -> Service:
    return Service(name="m", inputs=backend.inputs, outputs=backend.outputs)


def opened(**model: object) -> OrtBackend:
    return OrtBackend(classifier(**model).SerializeToString(), plugin=False)  # type: ignore[arg-type]


def test_models_without_one_dynamic_batch() -> None:
    service = Service(name="m", inputs=(X,), outputs=(X,))
    check_batch(service, None)
    with pytest.raises(UsageError, match=r"the file's batch is fixed to 4; .* export the model with a dynamic batch"):
        check_batch(service, 4)
    for shape in ((), (3,)):
        with pytest.raises(UsageError, match="the file's 'y' has no batch axis"):
            check_batch(replace(service, outputs=(TensorSpec("y", shape, FLOAT),)), None)
    boxes = TensorSpec("boxes", (None, 4), FLOAT, batch="boxes_batch")
    with pytest.raises(
        UsageError, match=r"rows of different kinds, .*: x \(batch\), boxes \(boxes_batch\), x \(batch\)"
    ):
        check_batch(replace(service, inputs=(X, boxes)), None)


def test_warm_up_is_left_out_where_zeros_do_not_run() -> None:
    notes: list[str] = []
    backend = opened()
    assert tried(service_of(backend), backend, notes).warms and notes == []
    backend = opened(width="width")
    assert not tried(service_of(backend), backend, notes).warms
    assert notes.pop() == "the server does not warm up: an input has dynamic sizes"


def test_an_output_with_other_rows_is_refused() -> None:
    backend = opened()
    run = backend.run
    backend.run = lambda inputs: {name: values[:1] for name, values in run(inputs).items()}  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"the file's output 'scores' has shape \[1, 4\] for a batch of 2"):
        tried(service_of(backend), backend, [])
    backend.run = lambda inputs: {"scores": np.full((len(inputs["x"]), 4), np.nan, np.float32)}  # type: ignore[method-assign]
    notes: list[str] = []
    assert not tried(service_of(backend), backend, notes).warms
    assert notes == ["the server does not warm up: the model fails or returns NaN for zeros"]


def test_classes_follow_the_file_and_the_options() -> None:
    backend = opened(scores=Scores("sigmoid"))
    found = classified(service_of(backend), backend, None, None, None)
    assert found.labels == LABELS and found.classes is not None
    assert (found.classes.scores, found.classes.top_k) == (Scores("sigmoid"), 4), "all may be right"
    assert classified(service_of(opened()), opened(), None, None, None).classes.top_k == 1  # type: ignore[union-attr]
    found = classified(service_of(backend), backend, 3, list("abcd"), "none")
    assert found.classes is not None and found.labels == found.classes.labels == ("a", "b", "c", "d")
    assert (found.classes.scores, found.classes.top_k) == (Scores("none"), 3)
    other = classified(replace(service_of(backend), platform="onnxruntime"), backend, None, None, None)
    assert other.classes is None and other.labels == LABELS
    with pytest.raises(UsageError, match="only the platform python adds predictions"):
        classified(replace(service_of(backend), platform="onnxruntime"), backend, 2, None, None)
    with pytest.raises(UsageError, match="2 labels given for the 4 classes"):
        classified(service_of(backend), backend, None, ["a", "b"], None)


def test_a_sigmoid_of_an_unknown_number_of_classes_gives_all() -> None:
    backend = opened(scores=Scores("sigmoid"), labels=None)
    backend.outputs = (replace(backend.outputs[0], shape=(None, None)), *backend.outputs[1:])
    found = classified(service_of(backend), backend, None, None, None)
    assert found.classes is not None and found.classes.top_k == ALL_CLASSES
    assert {length for _, _, length in found.added()} == {None}
    assert "`prediction` has all classes, best first" in readme_text(found, PurePosixPath("/srv/models/m"))


def test_options_for_classes_of_a_model_without_them() -> None:
    backend = opened()
    backend.outputs = (TensorSpec("map", (None, 1, 8, 8), FLOAT),)
    assert classified(service_of(backend), backend, None, None, None).classes is None
    with pytest.raises(UsageError, match="top_k is given, but the model's first output is not a vector"):
        classified(service_of(backend), backend, 2, None, None)


def engine(folder: Path, **change: object) -> Path:
    graph, weights = hashes(classifier())
    key = {
        **{"graph_sha256": graph, "weights_sha256": weights, "runtime": "tensorrt", "runtime_version": "10.16"},
        **{"gpu": "L4", "sm": "sm89", "plugin_sha256": "", "precision": "float32", "flags": ()},
        "profiles": ((InputProfile("x", (1, 2, 3), (8, 2, 3), (32, 2, 3)),),),
    }
    path = folder / "m.engine"
    digest = hashlib.sha256(ENGINE).hexdigest()
    write_engine(path, ENGINE, Sidecar(EngineKey(**key | change), digest, len(ENGINE), "m.onnx", "2026", 1.0))  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph_sha256": "0"}, r"was built from another version of the model \(m.onnx\); build it again"),
        ({"weights_sha256": "0"}, r"was built from another version of the model"),
        ({"runtime": "tensorrt-rtx"}, "is a tensorrt-rtx engine, which Triton does not run"),
        ({"plugin_sha256": "0"}, "was built with another plugin library than"),
    ],
)
def test_engines_that_do_not_belong_to_the_model(
    tmp_path: Path, change: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libstn_plugins.so"
    library.write_bytes(b"library")
    monkeypatch.setenv("STN_PLUGIN_LIBRARY", str(library))
    with pytest.raises(ModelError, match=message):
        load_engine_of(engine(tmp_path, **change), classifier())
    library.unlink()
    if "plugin_sha256" in change:
        with pytest.raises(MissingDependencyError, match="the plugin library is not built"):
            load_engine_of(engine(tmp_path, **change), classifier())


def test_the_batches_of_an_engine(tmp_path: Path) -> None:
    data, sidecar = load_engine_of(engine(tmp_path), classifier())
    assert data == ENGINE and sidecar is not None
    assert describe(sidecar) == "needs TensorRT 10.16 on the server, and was built for L4 (sm89)"
    newer = replace(sidecar, key=replace(sidecar.key, gpu="", flags=("version-compatible",)))
    assert describe(newer) == "needs TensorRT 10.16 or newer on the server, and was built for sm89"
    service = Service(name="m", platform="tensorrt", inputs=(X,), outputs=(X,))
    found = profiled(service, sidecar, None)
    assert (found.max_batch, found.preferred) == (32, 8)
    found = profiled(service, sidecar, 4)
    assert (found.max_batch, found.preferred) == (4, 4)
    with pytest.raises(
        UsageError, match="the engine takes batches of 1 to 32, not a batch of 33; build it with another"
    ):
        profiled(service, sidecar, 33)
    larger = replace(sidecar.key, profiles=((InputProfile("x", (2, 2, 3), (8, 2, 3), (32, 2, 3)),),))
    with pytest.raises(UsageError, match="the engine takes batches of 2 to 32, not a single sample"):
        profiled(service, replace(sidecar, key=larger), None)
    assert profiled(service, None, None) == service


def profile(*batch: int, width: tuple[int, int, int] = (3, 3, 3)) -> tuple[InputProfile, ...]:
    """Of the input x, with a range of its last axis."""
    return (InputProfile("x", *((rows, 2, size) for rows, size in zip(batch, width, strict=True))),)


@pytest.mark.parametrize(
    ("profiles", "asked", "most", "preferred"),
    [
        ([profile(1, 1, 1), profile(2, 64, 256)], None, 256, 64),
        ([profile(2, 64, 256), profile(1, 1, 1)], 16, 16, 16),
        ([profile(1, 1, 4), profile(2, 8, 8), profile(16, 32, 64)], 8, 8, 8),
        ([profile(1, 4, 32, width=(3, 3, 8)), profile(1, 2, 4, width=(9, 16, 32))], None, 4, 4),
        ([profile(1, 1, 1, width=(3, 3, 32)), profile(2, 4, 8, width=(3, 3, 8))], None, 1, 1),
    ],
)
def test_all_profiles_of_an_engine_serve(
    tmp_path: Path, profiles: list[tuple[InputProfile, ...]], asked: int | None, most: int, preferred: int
) -> None:
    _, sidecar = load_engine_of(engine(tmp_path, profiles=tuple(profiles)), classifier())
    service = Service(name="m", platform="tensorrt", inputs=(X,), outputs=(X,))
    found = profiled(service, sidecar, asked)
    assert (found.max_batch, found.preferred, found.profiles) == (most, preferred, len(profiles))


def test_batches_that_no_profile_takes_are_refused(tmp_path: Path) -> None:
    """Triton would run them in the first profile, and fail."""
    service = Service(name="m", platform="tensorrt", inputs=(X,), outputs=(X,))
    profiles = (profile(1, 1, 1), profile(8, 64, 64))
    _, sidecar = load_engine_of(engine(tmp_path, profiles=profiles), classifier())
    for asked, wanted in ((None, 2), (16, 16)):
        with pytest.raises(UsageError, match=f"takes batches of 1 or 8 to 64, not a batch of {wanted}; build it with"):
            profiled(service, sidecar, asked)
    assert profiled(service, sidecar, 1).max_batch == 1


def test_the_libraries_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, register = tmp_path / "libstn_plugins.so", tmp_path / "libstn_plugins_register.so"
    monkeypatch.setenv("STN_PLUGIN_LIBRARY", str(library))
    service = Service(name="m", platform="tensorrt", inputs=(X,), outputs=(X,))
    model, _ = fuse(affine_model())
    _, sidecar = load_engine_of(engine(tmp_path), classifier())
    assert sidecar is not None
    with_plugin = replace(sidecar, key=replace(sidecar.key, plugin_sha256="0"))
    notes: list[str] = []
    assert with_library(service, model, sidecar, True, notes) == (service, ())  # native layers
    assert with_library(service, classifier(), with_plugin, True, notes) == (service, ())  # no op of ours
    assert with_library(service, model, None, True, notes) == (service, ())  # of trtexec: nobody knows
    assert notes.pop().startswith("an engine that was built with the plugin library needs it, and it is not here: the")
    with pytest.raises(MissingDependencyError, match="the plugin library is not built"):
        with_library(service, model, with_plugin, True, notes)
    library.write_bytes(b"library")
    with pytest.raises(MissingDependencyError, match=r"libstn_plugins_register\.so is missing; `stn-infer"):
        with_library(service, model, with_plugin, True, notes)
    register.write_bytes(b"register")
    for known in (with_plugin, None):
        found, files = with_library(service, model, known, True, notes)
        assert found.library == "libstn_plugins.so" and files == (library, register) and notes == []
