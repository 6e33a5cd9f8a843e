"""Files of ``torch.save`` give the tensors that ``torch.load`` gives, without it."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stn_infer.budget import Budget
from stn_infer.errors import WeightsError
from stn_infer.sources.checkpoints import load_weights
from stn_infer.sources.inert_pickle import Inert
from stn_infer.sources.torch_file import read_legacy, read_zip


class Settings(collections.UserDict):  # type: ignore[type-arg]
    """A trainer's own class."""


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    kinds = (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
        *(torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128),
    )
    return {
        **{str(kind): torch.tensor([0, 1, 2, 3]).to(kind) for kind in kinds},
        "transposed": base.t(),
        "a view": base[1:3, ::2],
        "the same": base,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "expanded": torch.ones(1).expand(5),
        "parameter": nn.Parameter(torch.ones(3)),
        "with an attribute": tagged(torch.ones(2)),
    }


def tagged(tensor: torch.Tensor) -> torch.Tensor:
    tensor.tag = "x"  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_equal_those_of_torch_load(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path = tmp_path / "net.pt"
    torch.save(tensors(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = (read_zip if zipped else read_legacy)(path, Budget())
    expected = torch.load(path, weights_only=False)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride(), name
        assert torch.equal(found[name], tensor), name
    found["the same"][0, 0] = 7.0
    assert found["transposed"][0, 0] == 7.0  # memory that was shared is shared


def test_types_that_only_archives_have(tmp_path: Path) -> None:
    kinds = (torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.float8_e5m2)
    torch.save({str(kind): torch.tensor([1.0, 2.0]).to(kind) for kind in kinds}, tmp_path / "net.pt")
    found = read_zip(tmp_path / "net.pt", Budget())
    assert {name: (str(value.dtype), value.float().tolist()) for name, value in found.items()} == {
        str(kind): (str(kind), [1.0, 2.0]) for kind in kinds
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_conjugates_and_negatives_that_are_computed_on_use(tmp_path: Path, zipped: bool) -> None:
    values = torch.tensor([1 + 2j, 3 - 4j])
    lazy = {"conj": values.conj(), "imag": values.clone().conj().imag, "view": values.clone().conj().imag[1:]}
    torch.save(lazy, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    found = load_weights(tmp_path / "net.pt")
    assert {name: tensor.resolve_conj().resolve_neg().tolist() for name, tensor in found.items()} == {
        **{"conj": [1 - 2j, 3 + 4j], "imag": [-2, 4], "view": [4]},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_objects_of_other_classes_are_placeholders(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "net.pt"
    content = {
        "state_dict": {"w": torch.ones(2)},
        "args": argparse.Namespace(lr=0.1),
        "config": Settings(a=1),
        "seen": {1, 2},
        "path": Path("x"),
        "counts": collections.Counter("aab"),
        "best": np.float64(0.5),
        "sparse": torch.eye(2).to_sparse(),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found: Any = (read_zip if zipped else read_legacy)(path, Budget())
    assert isinstance(found["args"], Inert) and found["args"].state == {"lr": 0.1}
    assert found["config"].kind.endswith("test_torch_file.Settings")
    assert [type(found[name]) for name in ("seen", "path", "counts", "sparse")] == [Inert] * 4
    assert found["best"] == 0.5
    assert torch.equal(load_weights(path)["w"], torch.ones(2))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_plain_pickles_and_arrays(tmp_path: Path, protocol: int) -> None:
    weights = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    arrays = {"a": np.arange(6, dtype=">f8").reshape(2, 3), "f": np.asfortranarray(np.ones((2, 3), np.float32))}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"model": {**weights, **arrays}}, protocol))
    found = load_weights(tmp_path / "net.pkl")
    assert torch.equal(found["w"], weights["w"]) and found["n"] == 3
    assert torch.equal(found["a"], torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
    assert torch.equal(found["f"], torch.ones(2, 3))


def test_a_file_of_another_machine_and_of_a_gpu(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4)}, tmp_path / "cpu.pt")
    for name, replaced in (("gpu", (b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:0")), ("big", (b"little", b"big"))):
        with zipfile.ZipFile(tmp_path / "cpu.pt") as old, zipfile.ZipFile(tmp_path / f"{name}.pt", "w") as new:
            for member in old.namelist():
                content = old.read(member)
                new.writestr(member, content.replace(*replaced) if len(content) != 16 else content)
    assert torch.equal(load_weights(tmp_path / "gpu.pt")["w"], torch.ones(4))
    with pytest.raises(
        WeightsError, match=r"big\.pt: it was written on a big-endian machine; open it with torch\.load"
    ):
        load_weights(tmp_path / "big.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_truncation_is_one_line(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "net.pt"
    torch.save({"w": torch.ones(4), "v": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for length in range(9, len(content) - 1, 7 if zipped else 3):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError) as caught:
            load_weights(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA], ids=["deflate", "lzma"])
def test_archives_that_were_compressed_again(tmp_path: Path, method: int) -> None:
    plain, path = tmp_path / "plain.pt", tmp_path / "net.pt"
    torch.save({"w": torch.arange(4000.0)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", method) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
        start = new.getinfo("plain/data/0").header_offset
    if method == zipfile.ZIP_LZMA:
        with pytest.raises(
            WeightsError, match=r"net\.pt: its archive is compressed by another method than deflate; open"
        ):
            load_weights(path)
        return
    assert torch.equal(load_weights(path)["w"], torch.arange(4000.0))
    content = bytearray(path.read_bytes())
    content[start + 60 : start + 160] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="truncated or damaged"):
        load_weights(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_is_not_damaged_is_not_called_damaged(tmp_path: Path, zipped: bool) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    torch.save({"w": quantized}, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightsError, match=r"net\.pt: tensors of type torch\.QInt8Storage are not supported; .*dequantize"
    ):
        load_weights(tmp_path / "net.pt")


def test_versions_of_the_format(tmp_path: Path) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            view = ("1", 0, 1)  # as torch 0.3 named it
            return ("storage", torch.FloatStorage, "0", "cpu", 1, view) if value is view_here else None

    view_here = object()
    content = io.BytesIO()
    Pickler(content, 2).dump({"w": view_here})
    for version, message in (
        (1002, "expected version 1001"),
        (1001, r"it has the format of a torch before 0\.4; open"),
    ):
        header = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, version, {}))
        (tmp_path / "net.pt").write_bytes(header + content.getvalue())
        with pytest.raises(WeightsError, match=rf"net\.pt: {message}"):
            load_weights(tmp_path / "net.pt")


def test_a_pickled_tensor_is_not_taken_for_a_file_of_torch_save(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(torch.ones(2)))
    with pytest.raises(WeightsError, match="expected a dictionary of tensors, found a Tensor"):
        load_weights(tmp_path / "net.pkl")


@pytest.mark.parametrize("keys", [[()], [[]], [1], ["x"], None])
def test_a_damaged_list_of_storages(tmp_path: Path, keys: object) -> None:
    header = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {}, {"epoch": 1}))
    (tmp_path / "net.pt").write_bytes(header + pickle.dumps(keys, 2))
    with pytest.raises(WeightsError, match="its list of tensors is damaged"):
        load_weights(tmp_path / "net.pt")
