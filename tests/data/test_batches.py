"""Calibration samples: read as in `run`, evenly spaced, with reported failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from stn_infer.backends.base import TensorSpec
from stn_infer.data import batches as calibration
from stn_infer.data.batches import check_sources, load_calibration, sample_axes
from stn_infer.errors import InputError
from stn_infer.preprocess.rule import Preprocess
from tests.support.batch_axes import file_of
from tests.support.onnx_files import F32, make

SPECS = (TensorSpec("x", (None, 1, 4, 4), np.dtype(np.float32)),)


def save(folder: Path, count: int) -> None:
    for index in range(count):
        Image.fromarray(np.full((4, 4), index, np.uint8)).save(folder / f"{index:03}.png")


def test_images_are_preprocessed(tmp_path: Path) -> None:
    save(tmp_path, 40)
    found = load_calibration([tmp_path], SPECS, Preprocess("gray", mean=(0.5,)))
    assert found.samples == 40 and found.notes == ()
    values = np.concatenate([batch["x"] for batch in found.batches])
    np.testing.assert_allclose(values[:, 0, 0, 0], np.arange(40) / 255 - 0.5, atol=1e-6)
    assert values.dtype == np.float32 and [len(batch["x"]) for batch in found.batches] == [32, 8]


def test_evenly_spaced_samples_are_used_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST_SAMPLES", 5)
    save(tmp_path, 20)
    found = load_calibration([tmp_path], SPECS, Preprocess("gray", scale=1.0))
    (batch,) = found.batches
    assert batch["x"][:, 0, 0, 0].tolist() == [0, 4, 8, 12, 16]
    assert found.notes == ("5 of 20 calibration samples were used, evenly spaced",)


def test_unreadable_samples_are_skipped_and_reported(tmp_path: Path) -> None:
    save(tmp_path, 3)
    (tmp_path / "001.png").write_bytes(b"no image")
    found = load_calibration([tmp_path], SPECS, Preprocess("gray"))
    assert found.samples == 2
    (note,) = found.notes
    assert note.startswith("1 of 3 calibration samples were skipped; the first: ") and "001.png" in note


def test_no_readable_sample_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no inputs in the folder"):
        load_calibration([tmp_path], SPECS, Preprocess("gray"))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"no calibration sample can be read: .*a\.png"):
        load_calibration([tmp_path], SPECS, Preprocess("gray"))


def test_sources_are_checked_before_a_long_computation(tmp_path: Path) -> None:
    for sources in ([tmp_path], [tmp_path / "none.png"], [f"{tmp_path}/*.png"], [f"@{tmp_path}/list.txt"]):
        with pytest.raises(InputError):
            check_sources(sources)
    (tmp_path / "a.png").write_bytes(b"no image")
    check_sources([tmp_path, "-"])


def test_arrays_for_models_without_image_input(tmp_path: Path) -> None:
    specs = (TensorSpec("a", (None, 3), np.dtype(np.float32)), TensorSpec("b", (None, 2), np.dtype(np.float32)))
    np.savez(tmp_path / "s.npz", a=np.ones((6, 3), np.float32), b=np.zeros((6, 2), np.float32))
    found = load_calibration([tmp_path / "s.npz"], specs, None)
    assert found.samples == 6 and {name: len(value) for name, value in found.batches[0].items()} == {"a": 6, "b": 6}


@pytest.mark.parametrize(("kind", "axes"), [("shared", (None, None, 0)), ("own", (None, 0)), ("later", (1, 0))])
def test_the_axis_of_the_samples(kind: str, axes: tuple[int | None, ...]) -> None:
    assert sample_axes(file_of(kind)) == axes


@pytest.mark.parametrize(
    ("first", "second", "axes"),
    [
        (["n"], ["m"], (0, 0)),  # other exporters name one axis differently
        ([4], [4], (0, 0)),  # a fixed batch
        ([4], ["n"], (None, 0)),
        ([4], [5], (None, None)),  # nothing says which
        ([], [], (None, None)),
    ],
)
def test_the_axis_of_the_samples_by_lengths(first: list[object], second: list[object], axes: tuple[object]) -> None:
    nodes = [helper.make_node("ReduceSum", ["a"], ["s"], keepdims=0), helper.make_node("Add", ["s", "b"], ["y"])]
    model = make(nodes, {"a": (F32, [*first]), "b": (F32, [*second])}, {"y": (F32, [*second])}, [])
    assert sample_axes(model) == axes


def test_arrays_of_all_samples_are_named(tmp_path: Path) -> None:
    float32 = np.dtype(np.float32)
    specs = (TensorSpec("a", (None, 3), float32), TensorSpec("b", (2,), float32))
    np.savez(tmp_path / "s.npz", a=np.ones((40, 3), np.float32), b=np.zeros(2, np.float32))
    found = load_calibration([tmp_path / "s.npz"], specs, None)
    assert found.samples == 40 and found.shared == {"b"}
    assert [(len(batch["a"]), len(batch["b"])) for batch in found.batches] == [(32, 2), (8, 2)]
