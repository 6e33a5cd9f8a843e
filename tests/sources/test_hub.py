"""Files on the Hugging Face Hub, with a client that looks into a folder, and with the real one if it is installed."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import stn_infer
from stn_infer.cli.main import main
from stn_infer.errors import MissingDependencyError, SourceError, UsageError
from stn_infer.extras import install
from stn_infer.sources.checkpoints import load_weights
from stn_infer.sources.hub import local
from stn_infer.sources.reference import Weights


class RepositoryNotFoundError(Exception):
    """As the client's."""


class LocalEntryNotFoundError(FileNotFoundError):
    """As the client's."""


class EntryNotFoundError(Exception):
    """As the client's."""


class GatedRepoError(RepositoryNotFoundError):
    """As the client's."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files ``REPOSITORY@REVISION/FILE`` the client finds."""
    folder = tmp_path / "hub"
    raised = {"gone": RepositoryNotFoundError(), "gated": GatedRepoError(), "offline": LocalEntryNotFoundError()}

    def hf_hub_download(repo_id: str, filename: str, *, revision: str | None, endpoint: str | None) -> str:
        if (error := raised.get(repo_id.partition("/")[2])) is not None:
            raise error
        if repo_id.endswith("/broken"):
            raise OSError("Server error\nfor url")
        found = folder / f"{repo_id}@{revision or 'main'}" / filename
        if not found.exists():
            raise EntryNotFoundError(found)
        return str(found)

    client = ModuleType("huggingface_hub")
    client.hf_hub_download = hf_hub_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    for revision in ("main", "v1"):
        (folder / "org" / f"net@{revision}" / "sub").mkdir(parents=True)
        torch.save({"model": {"w": torch.full((2,), float(revision == "v1"))}}, folder / f"org/net@{revision}/sub/w.pt")
    yield folder


def test_names(hub: Path) -> None:
    assert local("model.onnx") == "model.onnx"
    for name in ("hf://org/net/sub/w.pt", Path("hf://org/net/sub/w.pt")):
        assert local(name) == hub / "org/net@main/sub/w.pt"
    for name in ("hf://org/net/sub/w.pt@v1", "hf://org/net@v1/sub/w.pt"):
        assert local(name) == hub / "org/net@v1/sub/w.pt"
    (hub / "org/net@refs/pr/1").mkdir(parents=True)
    (hub / "org/net@refs/pr/1/w.pt").touch()
    assert local("hf://org/net/w.pt@refs/pr/1") == hub / "org/net@refs/pr/1/w.pt"
    for name in ("hf://org", "hf://org/net", "hf://org/net/", "hf://org/net/../w", "hf://org/net@a/w@b", "hf://o/n//w"):
        with pytest.raises(UsageError, match="expected hf://ORGANIZATION/REPOSITORY/FILE"):
            local(name)
    for revision in ("..", "../../x", "refs/../x", "/x", "refs//1", "refs/", "."):
        with pytest.raises(UsageError, match="expected hf://ORGANIZATION/REPOSITORY/FILE"):
            local(f"hf://org/net/w.pt@{revision}")
    for name in ("hf://org/net@../w.pt", "hf://../net/w.pt"):
        with pytest.raises(UsageError, match="expected hf://ORGANIZATION/REPOSITORY/FILE"):
            local(name)


def test_weights(hub: Path) -> None:
    assert load_weights("hf://org/net/sub/w.pt@v1#model")["w"].tolist() == [1, 1]
    assert load_weights(Path("hf://org/net/sub/w.pt"))["w"].tolist() == [0, 0]
    weights = Weights.of("hf://org/net/sub/w.pt@v1#model")
    assert str(weights) == "hf://org/net/sub/w.pt@v1#model" and weights.below(Path("folder")) == weights


def test_sources(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"w\.pt is a checkpoint: weights without a network"):
        stn_infer.load_source("hf://org/net/sub/w.pt")
    done = CliRunner().invoke(main, ["metadata", "hf://org/net/sub/w.pt"])
    assert "is a checkpoint" in done.stderr
    done = CliRunner().invoke(main, ["export", "hf://org/net/other.onnx", "-o", "x.onnx"])
    assert done.stderr == "error: hf://org/net/other.onnx: the repository has no such file\n"
    with pytest.raises(UsageError, match="is on the Hub; name the file to write with -o"):
        stn_infer.write_metadata("hf://org/net/model.onnx", labels=["a"])


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("gone", "there is no such repository, or it is private; check the name, or use hf auth login"),
        ("gated", "the repository is gated; accept its conditions on its page"),
        ("offline", "it is not in the cache, and the Hub cannot be reached"),
        ("net", "the repository has no such file"),
        ("broken", "cannot be downloaded: Server error for url"),
    ],
)
def test_what_the_client_raises_is_one_line(hub: Path, repository: str, message: str) -> None:
    with pytest.raises(SourceError, match=rf"^hf://org/{repository}/x\.pt: {message}") as caught:
        local(f"hf://org/{repository}/x.pt")
    assert "\n" not in str(caught.value)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match="hf:// needs huggingface_hub .*" + re.escape(install("hub"))):
        local("hf://org/net/w.pt")


class Served(http.server.BaseHTTPRequestHandler):
    """One file, as the Hub serves it."""

    content: ClassVar[bytes] = b""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        found = self.path == "/org/net/resolve/v1/w.pt"
        content = self.content if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


def test_the_real_client_and_a_server(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    Served.content = (tmp_path / "w.pt").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = """
from stn_infer.errors import SourceError
from stn_infer.sources.hub import local
print(local("hf://org/net/w.pt@v1").read_bytes().hex()[:8])
try:
    local("hf://org/net/other.pt@v1")
except SourceError as error:
    print(error)
"""
        endpoint = f"http://127.0.0.1:{server.server_port}"
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        server.shutdown()
    assert done.stdout.splitlines() == ["504b0304", "hf://org/net/other.pt@v1: the repository has no such file"], done
