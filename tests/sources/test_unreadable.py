"""Files given as weights that are none: a sentence says what each is and what to do."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from stn_infer.errors import WeightsError
from stn_infer.sources.checkpoints import load_weights

STATE = {"w": torch.ones(400)}


def checkpoint() -> bytes:
    path = Path("whole.pt")
    torch.save(STATE, path)
    content = path.read_bytes()
    path.unlink()
    return content


def archive(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members.items():
            made.writestr(name.replace("__", "."), content)


def arrays() -> bytes:
    content = io.BytesIO()
    np.savez(content, w=np.ones(3))
    return content.getvalue()


def tar(path: Path) -> None:
    Path("inner").write_bytes(b"x")
    with tarfile.open(path, "w") as made:
        made.add("inner")


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def program(path: Path) -> None:
    archive(path, archive_format=b"pt2", data__pkl=b"")


def onnx_file(path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", 1, [1])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [output])), path)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "Git LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "is a Git LFS pointer, not the file itself; fetch it with git lfs pull",
    ),
    "HTML": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "is an HTML page, perhaps from a download that"),
    "half an archive": (
        lambda path: path.write_bytes(checkpoint()[:1000]),
        r"is not complete: the end of torch\.save's archive is missing \(1,000 bytes are here\); the download or copy",
    ),
    "an archive that ends in zeros": (
        lambda path: path.write_bytes(checkpoint()[:1000] + bytes(5000)),
        r"is not complete: the end of torch\.save's archive is missing",
    ),
    "half a safetensors file": (
        lambda path: path.write_bytes(save(STATE)[:500]),
        "is not a complete safetensors file: it has 500 of 1,672 bytes; the download or copy was cut off",
    ),
    "zeros": (
        lambda path: path.write_bytes(bytes(100)),
        "is not a checkpoint: it contains zeros; the download",
    ),
    "an answer": (
        lambda path: path.write_text('{"error": "Not found"}'),
        r"""is not a checkpoint but text \('\{"error": "Not found"\}'\), perhaps the answer to a failed download""",
    ),
    "an index": (
        lambda path: path.write_text('{"metadata": {}, "weight_map": {"w": "model-1-of-2.safetensors"}}'),
        "is the index of a checkpoint in several files; load them together in Python",
    ),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), "is a compressed file; unpack it first"),
    "7z": (lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(30)), "is a compressed file; unpack it first"),
    "tar": (tar, "is a tar archive; unpack it first"),
    "zip": (lambda path: archive(path, net=b"x"), "is a zip archive; unpack it first"),
    "Keras": (
        lambda path: archive(path, config__json=b"", model__weights__h5=b""),
        "is a Keras model; export it to ONNX from Keras",
    ),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "is an HDF5 file, such as Keras writes; export the"),
    "npz": (lambda path: path.write_bytes(arrays()), r"is a NumPy array file; .* torch\.from_numpy"),
    "TorchScript": (scripted, r"is a TorchScript archive; save its weights with torch\.save\(model\.state_dict\(\)"),
    "pt2": (program, r"is a program saved by torch\.export\.save, which contains its weights; give it as SOURCE"),
    "ONNX": (onnx_file, "is an ONNX file, which contains its weights; give it to optimize, run or verify as it is"),
    "model config": (lambda path: path.write_text('[model]\nnetwork = "x"\n'), "is a model config; give it as SOURCE"),
    "GGUF": (lambda path: path.write_bytes(b"GGUF\3\0\0\0"), "is a GGUF file"),
    "another binary format": (
        lambda path: path.write_bytes(b"\x08\x01\x12\x05hello\xff"),
        r"is not a checkpoint \(.*\): it is truncated or has another format; expected \.safetensors, or a file of",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("write", "message"), FILES.values(), ids=FILES.keys())
def test_what_a_file_is(
    write: Callable[[Path], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("net.pt"))
    with pytest.raises(WeightsError, match=rf"^net\.pt {message}") as caught:
        load_weights("net.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["renamed.pt", "renamed.bin", "renamed.safetensors"])
def test_a_renamed_file_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    if name.endswith("safetensors"):
        torch.save(STATE, tmp_path / name)
    else:
        save_file(STATE, tmp_path / name)
    assert torch.equal(load_weights(tmp_path / name)["w"], STATE["w"])
