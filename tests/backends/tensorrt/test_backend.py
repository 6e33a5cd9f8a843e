"""Engines that cannot be used, on the command line: each gives one line and exit code 1."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from stn_infer.backends.tensorrt import backend as backend_module
from stn_infer.backends.tensorrt.engine_cache import EngineKey, InputProfile, Sidecar, sidecar_path, write_engine
from stn_infer.backends.tensorrt.executor import IoTensor
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT
from stn_infer.cli.main import main
from stn_infer.errors import InputError
from stn_infer.metadata import ModelMetadata
from tests.support.streams_standin import Inline
from tests.support.tensorrt_engines import plan_of
from tests.support.tensorrt_standin import Cuda, Module, Script

ENGINE = b"an engine, as far as its sidecar can tell"
GPU = Gpu("a GPU", "sm89")


def write(path: Path, **change: Any) -> None:
    key: dict[str, Any] = {
        "graph_sha256": "a", "weights_sha256": "b", "runtime": "tensorrt", "runtime_version": "11.4.0",
        "gpu": GPU.name, "sm": GPU.sm, "plugin_sha256": "", "profiles": (), "precision": "float32", "flags": (),
    }  # fmt: skip
    digest = hashlib.sha256(ENGINE).hexdigest()
    write_engine(path, ENGINE, Sidecar(EngineKey(**key | change), digest, len(ENGINE), "m.onnx", "2026", 1.0))


def truncate(path: Path) -> None:
    write(path)
    path.write_bytes(ENGINE[:7])


def exchange(path: Path) -> None:
    write(path)
    path.write_bytes(ENGINE[::-1])


def damage_sidecar(path: Path) -> None:
    write(path)
    sidecar_path(path).write_text("{")


CASES = {
    "truncated": (truncate, f"7 of {len(ENGINE)} bytes: it is truncated; build it again"),
    "empty": (lambda path: path.write_bytes(b""), "is empty; expected a TensorRT engine"),
    "of another sidecar": (exchange, "is not the engine that m.engine.json describes"),
    "with a damaged sidecar": (damage_sidecar, "m.engine.json is damaged"),
    "not one": (lambda path: path.write_bytes(b"MZ no engine"), "m.engine is not a TensorRT engine: it begins with"),
    "of another tool": (lambda path: path.write_bytes(plan_of()), "TensorRT 11.4.0 cannot load the engine"),
    "of another tool and version": (
        lambda path: path.write_bytes(plan_of(version="10.9.0.34")),
        "m.engine was built with TensorRT 10.9.0.34, this is 11.4.0; build it again",
    ),
    "of another version": (lambda path: write(path, runtime_version="10.9.0"), "built with TensorRT 10.9.0, this is"),
    "of another GPU": (lambda path: write(path, gpu="another", sm="sm90"), "built for another (sm90), this is a GPU"),
    "of TensorRT-RTX": (
        lambda path: write(path, runtime="tensorrt-rtx"),
        "is a tensorrt-rtx engine, not a tensorrt engine; use --backend tensorrt-rtx",
    ),
    "missing": (lambda path: None, "does not exist; expected a TensorRT engine"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_engine_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    script = Script(deserializes=False)
    monkeypatch.setattr(backend_module, "load_runtime", lambda name: TensorRT(name, Module(script), "11.4.0"))
    monkeypatch.setattr(backend_module, "current_gpu", lambda index: GPU)
    monkeypatch.setenv("STN_PLUGIN_LIBRARY", str(tmp_path / "none.so"))
    monkeypatch.setattr("stn_infer.backends.tensorrt.cuda_stream.CudaDevice", lambda index: Cuda(script))
    make, message = CASES[case]
    make(tmp_path / "m.engine")
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.float32))
    arguments = ["run", str(tmp_path / "m.engine"), str(tmp_path / "x.npy"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*arguments, "--backend", "tensorrt", "--device", "cuda"])
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


class Crops:
    """An executor of an engine with 2 to 4 images and 1 to 3 boxes, which records how many it was given."""

    inputs = (
        IoTensor("image", (-1, 2), torch.float32),
        IoTensor("boxes", (-1, 4), torch.float32),
    )
    outputs = (IoTensor("crops", (-1, 4), torch.float32),)

    def __init__(self, more: tuple[InputProfile, ...] = ()) -> None:
        profile = InputProfile("image", (2, 2), (2, 2), (4, 2)), InputProfile("boxes", (1, 4), (1, 4), (3, 4))
        self.profiles = (profile, more) if more else (profile,)
        self.given: list[tuple[int, int]] = []

    def run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.given.append((len(inputs["image"]), len(inputs["boxes"])))
        return {"crops": inputs["boxes"] * 2}


class Scaled:
    """An executor of an engine with 1 to 4 images, all scaled by one number and moved by one pair of numbers."""

    inputs = (
        IoTensor("gain", (), torch.float32),
        IoTensor("image", (-1, 2), torch.float32),
        IoTensor("offset", (2, 2), torch.float32),
    )
    outputs = (IoTensor("y", (-1, 2), torch.float32),)
    profiles = (
        (
            InputProfile("gain", (), (), ()),
            InputProfile("image", (1, 2), (4, 2), (4, 2)),
            InputProfile("offset", (2, 2), (2, 2), (2, 2)),
        ),
    )

    def run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert inputs["offset"].shape == (2, 2) and 1 <= len(inputs["image"]) <= 4
        return {"y": inputs["image"] * inputs["gain"] + inputs["offset"].sum(0)}


@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_inputs_without_a_batch_axis_belong_to_all_samples(count: int) -> None:
    executor: Any = Scaled()
    opened = backend_module.Opened("m.engine", TensorRT("tensorrt", Module(Script()), "11.4.0"), GPU, "cpu", 0, {})
    backend = backend_module.TensorRTBackend(executor, opened, ModelMetadata(), Inline())
    assert [spec.shape for spec in (*backend.inputs, *backend.outputs)] == [(), (None, 2), (2, 2), (None, 2)]
    image = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    given = {"gain": np.float32(3).reshape(()), "image": image, "offset": np.float32([[1, 2], [3, 4]])}
    np.testing.assert_array_equal(backend.run(given)["y"], image * 3 + np.float32([4, 6]))


AXES = {"image": "batch", "boxes": "boxes_batch", "crops": "boxes_batch"}


def opened(axes: dict[str, str], more: tuple[InputProfile, ...] = ()) -> tuple[backend_module.TensorRTBackend, Crops]:
    executor: Any = Crops(more)
    runtime = TensorRT("tensorrt", Module(Script()), "11.4.0")
    return backend_module.TensorRTBackend(
        executor, backend_module.Opened("m.engine", runtime, GPU, "cpu", 0, axes), ModelMetadata(), Inline()
    ), executor


@pytest.mark.parametrize("images, boxes, given", [
    (1, 0, [(2, 1)]), (3, 1, [(3, 1)]), (4, 7, [(4, 3), (4, 3), (4, 1)]),
])  # fmt: skip
def test_images_and_boxes_have_batches_of_their_own(images: int, boxes: int, given: list[tuple[int, int]]) -> None:
    backend, executor = opened(AXES)
    assert [spec.batch for spec in (*backend.inputs, *backend.outputs)] == ["batch", "boxes_batch", "boxes_batch"]
    values = np.arange(4 * boxes, dtype=np.float32).reshape(boxes, 4)
    found = backend.run({"image": np.zeros((images, 2), np.float32), "boxes": values})
    np.testing.assert_array_equal(found["crops"], values * 2)
    assert executor.given == given
    with pytest.raises(InputError, match="batch has 5 rows, the engine takes 2 to 4 at once, and output 'crops' has"):
        backend.run({"image": np.zeros((5, 2), np.float32), "boxes": values})


@pytest.mark.parametrize("images, boxes, given", [
    (1, 30, [(1, 30)]), (3, 1, [(3, 1)]), (1, 3, [(2, 3)]), (1, 9, [(1, 20)]), (2, 7, [(2, 3), (2, 3), (2, 1)]),
    (1, 45, [(1, 30), (1, 20)]), (4, 0, [(4, 1)]),
])  # fmt: skip
def test_each_profile_has_ranges_of_its_own_for_images_and_boxes(
    images: int, boxes: int, given: list[tuple[int, int]]
) -> None:
    one = InputProfile("image", (1, 2), (1, 2), (1, 2)), InputProfile("boxes", (20, 4), (20, 4), (30, 4))
    backend, executor = opened(AXES, one)
    values = np.arange(4 * boxes, dtype=np.float32).reshape(boxes, 4)
    found = backend.run({"image": np.zeros((images, 2), np.float32), "boxes": values})
    np.testing.assert_array_equal(found["crops"], values * 2)
    assert executor.given == given
    with pytest.raises(InputError, match="image=5x2, boxes=7x4 is outside of the engine's 2 profiles, 0: image=2x2:2"):
        backend.run({"image": np.zeros((5, 2), np.float32), "boxes": np.zeros((7, 4), np.float32)})


@pytest.mark.parametrize("axes", [{}, {"image": "n", "boxes": "m", "crops": "m"}, AXES | {"crops": "rows"}])
def test_other_names_of_axes_are_one_batch(axes: dict[str, str]) -> None:
    backend, executor = opened(axes)
    assert {spec.batch for spec in (*backend.inputs, *backend.outputs)} == {"batch"}
    values = np.ones((5, 4), np.float32)
    assert backend.run({"image": np.zeros((5, 2), np.float32), "boxes": values})["crops"].shape == (5, 4)
    assert executor.given == [(3, 3), (2, 2)]
