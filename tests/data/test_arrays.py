from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stn_infer.backends.base import TensorSpec
from stn_infer.data.arrays import ArrayFiles
from stn_infer.errors import InputError
from stn_infer.preprocess.rule import Preprocess

FLOAT32 = np.dtype(np.float32)
IMAGE = TensorSpec("input", (None, 1, 4, 5), FLOAT32)
COLOR = TensorSpec("input", (None, 3, 4, 5), FLOAT32)
VOLUME = TensorSpec("input", (None, 1, 2, 3, 4), FLOAT32)
VECTOR = TensorSpec("scale", (None, 2), FLOAT32)
TOKENS = TensorSpec("tokens", (None, None), np.dtype(np.int64))


def files(*specs: TensorSpec) -> ArrayFiles:
    image = next((spec for spec in specs if len(spec.shape) == 4), None)
    preprocess = None if image is None else Preprocess("gray" if image.shape[1] == 1 else "rgb")
    return ArrayFiles(specs, preprocess)


def random(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize(
    ("spec", "array", "rows"),
    [
        (IMAGE, random(7, 1, 4, 5), 7),
        (IMAGE, random(1, 4, 5), None),
        (IMAGE, random(7, 1, 4, 5, dtype=np.float64), 7),
        (IMAGE, random(7, 4, 5, dtype=np.uint8), 7),
        (IMAGE, random(4, 5, dtype=np.uint8), None),
        (IMAGE, random(4, 5, 3, dtype=np.uint8), None),
        (IMAGE, random(7, 4, 5, 3, dtype=np.uint8), 7),
        (COLOR, random(7, 4, 5, 1, dtype=np.uint8), 7),
        (IMAGE, random(0, 1, 4, 5), 0),
        (VOLUME, random(7, 1, 2, 3, 4), 7),
        (TOKENS, random(7, 9, dtype=np.int32), 7),
        (TOKENS, random(9, dtype=np.int64), None),
    ],
)
def test_rows_are_counted_and_loaded(tmp_path: Path, spec: TensorSpec, array: Any, rows: int | None) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array)
    reader = files(spec)
    assert reader.count_rows(str(path)) == rows
    for row in [None] if rows is None else range(rows):
        value = reader.load(str(path), row)[spec.name]
        source = array if row is None else array[row]
        if array.dtype == np.uint8:
            assert value.dtype == np.uint8
            assert value.shape == spec.shape[1:]
            if source.ndim == 2 and spec is IMAGE:
                assert np.array_equal(value[0], source)
        else:
            assert value.dtype == spec.dtype
            assert np.array_equal(value, source)


def test_npz_of_one_array_and_of_named_inputs(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, whatever=random(3, 1, 4, 5))
    assert files(IMAGE).count_rows(str(path)) == 3
    np.savez(path, scale=random(3, 2), input=random(3, 1, 4, 5), other=random(9))
    reader = files(IMAGE, VECTOR)
    assert reader.count_rows(str(path)) == 3
    sample = reader.load(str(path), 2)
    assert list(sample) == ["input", "scale"]
    assert np.array_equal(sample["scale"], random(3, 2)[2])
    assert np.array_equal(sample["input"], random(3, 1, 4, 5)[2])


@pytest.mark.parametrize(
    ("specs", "arrays", "message"),
    [
        ([IMAGE], {"a": random(3, 1, 5, 4)}, r"takes \[N, 1, 4, 5\], found \[3, 1, 5, 4\]"),
        ([IMAGE], {"a": random(3, 4, 5)}, r"found \[3, 4, 5\]"),
        ([IMAGE], {"a": random(3, 2, 4, 5, dtype=np.uint8)}, "expected uint8 pixels"),
        ([VOLUME], {"a": random(3, 1, 2, 3, 4, dtype=np.uint8)}, "takes float32 values, found uint8"),
        ([TOKENS], {"a": random(3, 4)}, "takes int64 values, found float32"),
        ([IMAGE], {"a": random(3, 1, 4, 5), "b": random(3, 1, 4, 5)}, "expected arrays named input, found a, b"),
        ([IMAGE, VECTOR], {"input": random(3, 1, 4, 5)}, "expected arrays named input, scale, found input"),
        ([IMAGE, VECTOR], {"input": random(3, 1, 4, 5), "scale": random(2, 2)}, "different numbers"),
        ([IMAGE], {"a": np.array([{}], object)}, "Python objects"),
        ([IMAGE], {"a": np.array(["x"])}, "takes float32 values"),
    ],
)
def test_arrays_that_do_not_match(
    tmp_path: Path, specs: list[TensorSpec], arrays: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        files(*specs).count_rows(str(path))
    assert "\n" not in str(caught.value)


def test_several_inputs_need_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", random(3, 1, 4, 5))
    with pytest.raises(InputError, match=r"several inputs need an \.npz"):
        files(IMAGE, VECTOR).count_rows(str(tmp_path / "x.npy"))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, random(50, 1, 4, 5))
    whole = path.read_bytes()
    reader = files(IMAGE)
    for content in (b"", b"hello", whole[:60]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"not a readable"):
            reader.count_rows(str(path))
        with pytest.raises(InputError, match="damaged or unreadable"):
            reader.load(str(path), 0)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError):
        reader.load(str(path), 0)
    with pytest.raises(InputError, match="no such file"):
        reader.count_rows(str(tmp_path / f"none.{suffix}"))


def test_only_a_few_files_stay_open(tmp_path: Path) -> None:
    reader = files(IMAGE)
    for i in range(20):
        np.save(tmp_path / f"{i}.npy", random(2, 1, 4, 5) + i)
    for i in [*range(20), 0]:
        assert np.array_equal(reader.load(str(tmp_path / f"{i}.npy"), 1)["input"], random(2, 1, 4, 5)[1] + i)
    assert len(reader._opened) == 4


def test_a_file_that_shrank_after_it_was_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, random(3, 1, 4, 5))
    with pytest.raises(InputError, match="has changed"):
        files(IMAGE).load(str(path), 3)


HEADERS = {
    "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 1, 4, 5), }",
    "10^12 rows": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1, 4, 5), }",
    "overflowing": "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808, 1, 4, 5), }",
    "empty samples": "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 0), }",
    "code": "__import__('os').system('true')",
    "no dictionary": "[1, 2]",
    "nested": "(" * 5000,
    "open string": "{'descr': '<f4",
    "bytes": "{'descr': b'<f4', 'fortran_order': 1, 'shape': [3], }",
    "a type of no such name": "{'descr': 'zzz', 'fortran_order': False, 'shape': (3,), }",
    "a huge item": "{'descr': '|V2147483647', 'fortran_order': False, 'shape': (3,), }",
    "a record": "{'descr': [('a', '<f4', (1000000000,))], 'fortran_order': False, 'shape': (3,), }",
}


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_wrong_header_is_one_line_without_allocation(tmp_path: Path, header: str, suffix: str) -> None:
    content = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header.encode() + bytes(80)
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("input.npy", content)
    for spec in (IMAGE, TOKENS):
        with pytest.raises(InputError) as caught:
            files(spec).count_rows(str(path))
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError) as caught:
            files(spec).load(str(path), 0)
        assert "\n" not in str(caught.value)


def test_an_archive_that_unpacks_to_more_than_the_limit_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stn_infer.data.arrays.MOST_UNPACKED", 1 << 20)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, input=np.zeros((60000, 1, 4, 5), np.float32))
    for call in (lambda: files(IMAGE).count_rows(str(path)), lambda: files(IMAGE).load(str(path), 0)):
        with pytest.raises(InputError, match=r"unpacks to 4 MiB, more than the limit of 1 MiB; save it as \.npy"):
            call()


def test_only_the_needed_members_of_an_archive_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(50):
            archive.writestr(f"{index}.npy", b"damaged")
    np.savez(tmp_path / "good.npz", input=random(3, 1, 4, 5))
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(path, "a") as archive:
        archive.writestr("input.npy", good.read("input.npy"))
    assert files(IMAGE).count_rows(str(path)) == 3
    assert np.array_equal(files(IMAGE).load(str(path), 1)["input"], random(3, 1, 4, 5)[1])


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_truncated_while_it_is_read_fails_only_its_rows(tmp_path: Path, order: Any) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.asarray(random(50, 1, 4, 5), order=order))
    reader = files(IMAGE)
    assert reader.count_rows(str(path)) == 50
    assert np.array_equal(reader.load(str(path), 49)["input"], random(50, 1, 4, 5)[49])
    with path.open("r+b") as file:
        file.truncate(1000)
    assert np.array_equal(reader.load(str(path), 3)["input"], random(50, 1, 4, 5)[3])
    if order == "C":
        with pytest.raises(InputError, match="has changed since its samples were counted"):
            reader.load(str(path), 49)


def test_pipes_devices_and_folders_are_rejected_immediately(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.npy"
    os.mkfifo(pipe)
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "device.npy").symlink_to("/dev/zero")
    for name, kind in (("pipe.npy", "a named pipe"), ("folder.npz", "a folder"), ("device.npy", "a device")):
        with pytest.raises(InputError, match=f"is {kind}, expected a file"):
            files(IMAGE).count_rows(str(tmp_path / name))


def test_bad_rows_of_a_slice_fail_alone(tmp_path: Path) -> None:
    path, values = tmp_path / "x.npy", random(9, 1, 4, 5, dtype=np.float64)
    values[2, 0, 1, 1], values[5, 0, 3, 4], values[7, 0, 0, 0] = np.nan, -np.inf, 1e300
    np.save(path, values)
    reader = files(IMAGE)
    rows = reader.load_rows(str(path), 1, 8)
    assert sorted(rows.errors) == [1, 4, 6]
    assert {error.partition(": ")[2] for error in rows.errors.values()} == {
        "expected finite numbers, found NaN or infinity"
    }
    assert np.array_equal(rows.inputs["input"], values[[1, 3, 4, 6, 8]].astype(np.float32))


def test_large_finite_numbers_are_not_infinite(tmp_path: Path) -> None:
    values = np.full((4, 1, 4, 5), np.finfo(np.float32).max, np.float32)
    np.save(tmp_path / "x.npy", values)
    rows = files(IMAGE).load_rows(str(tmp_path / "x.npy"), 0, 4)
    assert not rows.errors and np.array_equal(rows.inputs["input"], values)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("shape", [(7, 4, 5), (7, 4, 5, 1), (7, 4, 5, 3), (7, 6, 8, 3)])
@pytest.mark.parametrize("spec", [IMAGE, COLOR])
def test_slices_of_pixels_equal_single_rows(
    tmp_path: Path, suffix: str, shape: tuple[int, ...], spec: TensorSpec
) -> None:
    path = tmp_path / f"x.{suffix}"
    np.save(path, random(*shape, dtype=np.uint8)) if suffix == "npy" else np.savez(path, random(*shape, dtype=np.uint8))
    preprocess = Preprocess("gray" if spec is IMAGE else "rgb", size=(4, 5))
    reader = ArrayFiles([spec], preprocess)
    rows = reader.load_rows(str(path), 2, 4)
    expected = [reader.load(str(path), row)["input"] for row in range(2, 6)]
    assert not rows.errors and np.array_equal(rows.inputs["input"], expected)


def test_a_file_that_is_replaced_after_it_was_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for values, message in (
        (random(7, 1, 5, 4), r"takes \[N, 1, 4, 5\], found \[7, 1, 5, 4\]"),
        (random(1, 4, 5), "has changed since its samples were counted"),
        (np.array(["x"] * 7), "takes float32 values"),
    ):
        np.save(path, values)
        with pytest.raises(InputError, match=message):
            files(IMAGE).load(str(path), 3)


@pytest.mark.parametrize(("channels", "rows"), [(3, None), (1, 4)])
def test_an_array_with_alpha_is_one_picture_unless_the_model_takes_gray(
    tmp_path: Path, channels: int, rows: int | None
) -> None:
    spec = TensorSpec("image", (None, channels, None, None), np.dtype(np.float32))
    np.save(tmp_path / "x.npy", random(4, 6, 4, dtype=np.uint8))
    assert files(spec).count_rows(str(tmp_path / "x.npy")) == rows


def test_reading_tells_that_there_are_pixels_without_counting(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", random(2, 4, 5, dtype=np.uint8))
    arrays = files(IMAGE)
    assert not arrays.pixels
    arrays.load(str(tmp_path / "x.npy"), 1)
    assert arrays.pixels


def test_an_input_without_a_batch_belongs_to_all_samples(tmp_path: Path) -> None:
    reader = files(TensorSpec("gain", (), FLOAT32), TensorSpec("theta", (2, 3), FLOAT32), VECTOR)
    path = tmp_path / "x.npz"
    np.savez(path, gain=np.float32(3), theta=random(2, 3), scale=random(5, 2))
    assert reader.shares and reader.count_rows(str(path)) == 5
    found = reader.load_rows(str(path), 2, 3)
    assert found.inputs["gain"] == 3 and np.array_equal(found.inputs["theta"], random(2, 3))
    assert np.array_equal(found.inputs["scale"], random(5, 2)[2:])
    np.savez(path, gain=np.float32(3), theta=random(5, 2, 3), scale=random(5, 2))
    with pytest.raises(InputError, match=r"input 'theta' takes \[2, 3\], found \[5, 2, 3\]"):
        files(TensorSpec("gain", (), FLOAT32), TensorSpec("theta", (2, 3), FLOAT32), VECTOR).count_rows(str(path))


def test_without_a_batch_axis_a_file_is_one_sample(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.float32(3), theta=random(2, 3))
    reader = files(TensorSpec("a", (), FLOAT32), TensorSpec("theta", (2, 3), FLOAT32))
    assert reader.count_rows(str(path)) is None
    assert np.array_equal(reader.load(str(path), None)["theta"], random(2, 3))
