"""URLs, with fsspec's file system in memory in the place of an object store."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from stn_infer import remote
from stn_infer.api.predictor import Predictor
from stn_infer.api.run import run
from stn_infer.cli.main import main
from stn_infer.data import images
from stn_infer.errors import InputError, MissingDependencyError, OutputError, SourceError, UsageError
from stn_infer.extras import install
from stn_infer.pipeline.storage import storage_of
from tests.api.cluster.test_model import write_model

fsspec = pytest.importorskip("fsspec", reason="URLs need fsspec; pip install fsspec")

OPTIONS: dict[str, Any] = {"preprocess": "0..1", "shard_rows": 8}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder, whose files are in the folder ``local`` too; the test runs beside it."""
    url, memory = f"memory://{uuid.uuid4().hex}", fsspec.filesystem("memory")
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model.onnx")
    names = [*(f"{i:02}.png" for i in range(20)), "deep/a.png", "deep.png", ".hidden/x.png", "deep/.y.png", "notes.txt"]
    for number, name in enumerate(names):
        data = io.BytesIO()
        Image.fromarray(np.full((4, 5), number, np.uint8)).save(data, "png")
        content = b"damaged" if name == "07.png" else data.getvalue()
        memory.pipe_file(f"{url}/{name}", content)
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    yield url
    memory.rm(url, recursive=True)


def shards(folder: str) -> dict[str, bytes]:
    memory = fsspec.filesystem("memory")
    if remote.is_url(folder):
        found = {path.rpartition("/")[2]: memory.cat_file(path) for path in memory.ls(folder, detail=False)}
    else:
        found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return {name: content for name, content in found.items() if name != "run.json"}


@pytest.mark.parametrize("format", ["csv", "npz", "parquet"])
def test_a_job_under_urls_is_that_of_folders(store: str, format: str) -> None:
    here = run("model.onnx", "local", "out", format=format, **OPTIONS)
    there = run("model.onnx", store, f"{store}-out", format=format, **OPTIONS)
    assert (there.ok, there.failed, there.left_out) == (here.ok, here.failed, here.left_out) == (21, 1, (("txt", 1),))
    assert there.output == f"{store}-out" and f"{store}-out/predictions-*.{format}" in there.headline
    expected = shards("out")
    found = shards(f"{store}-out")
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        if name.endswith("csv"):
            assert found[name].replace(store.encode(), b"local") == content
        elif format == "npz":
            one, other = np.load(io.BytesIO(content)), np.load(io.BytesIO(found[name]))
            assert all(np.array_equal(one[key], other[key]) for key in one.files if key != "input")
    assert run("model.onnx", store, f"{store}-out", format=format, resume=True, **OPTIONS).resumed == 22


def test_a_job_under_a_url_is_resumed_or_refused_or_replaced(store: str) -> None:
    memory, output = fsspec.filesystem("memory"), f"{store}-out"
    run("model.onnx", store, output, **OPTIONS)
    before = shards(output)
    with pytest.raises(OutputError, match=rf"{output} is not empty; give a new folder"):
        run("model.onnx", store, output, **OPTIONS)
    memory.rm_file(f"{output}/ledger-00001.csv")
    assert run("model.onnx", store, output, resume=True, **OPTIONS).resumed == 14
    assert shards(output) == before
    memory.pipe_file(f"{store}/03.png", b"other")
    with pytest.raises(OutputError, match="the inputs' sizes or modification times differ"):
        run("model.onnx", store, output, resume=True, **OPTIONS)
    assert run("model.onnx", store, output, overwrite=True, **OPTIONS).failed == 2
    memory.pipe_file(f"{output}/mine.txt", b"")
    with pytest.raises(OutputError, match="other files than a job's"):
        run("model.onnx", store, output, overwrite=True, **OPTIONS)


def test_a_store_has_one_job_at_a_time(store: str) -> None:
    memory, output = fsspec.filesystem("memory"), f"{store}-out"
    memory.pipe_file(f"{output}/run.lock", b'{"host": "elsewhere", "pid": 3}')
    with pytest.raises(OutputError, match=r"belongs to a job on another machine \(process 3 on elsewhere\); if it has"):
        run("model.onnx", store, output, **OPTIONS)
    for damaged in (b"", b"[1]", b"{"):
        memory.pipe_file(f"{output}/run.lock", damaged)
        with pytest.raises(
            OutputError, match=r"machine \(process \? on an unknown one\); if it has ended, delete \S+/run\.lock$"
        ):
            run("model.onnx", store, output, **OPTIONS)
    memory.pipe_file(f"{output}/run.lock", f'{{"host": "{platform.node()}", "pid": {os.getppid()}}}'.encode())
    with pytest.raises(OutputError, match="another job is working in"):
        run("model.onnx", store, output, **OPTIONS)
    memory.pipe_file(f"{output}/run.lock", f'{{"host": "{platform.node()}", "pid": 99999999}}'.encode())
    assert run("model.onnx", store, output, **OPTIONS).ok == 21, "its process has ended"
    assert "run.lock" not in shards(output)


def test_what_cannot_be_stored_is_told(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type(fsspec.filesystem("memory"))
    write = memory.pipe_file

    def full(self: Any, path: str, value: bytes, *rest: Any, **named: Any) -> None:
        if "predictions-00001" in path:
            raise PermissionError("AccessDenied: no\nquota")
        write(self, path, value, *rest, **named)

    monkeypatch.setattr(memory, "pipe_file", full)
    with pytest.raises(
        OutputError, match=r"^cannot write memory://\S+/predictions-00001\.csv: AccessDenied: no quota$"
    ):
        run("model.onnx", store, f"{store}-out", **OPTIONS)
    monkeypatch.undo()
    found = shards(f"{store}-out").keys()  # the third shard may have been written beside the second one
    assert not found & {"ledger-00001.csv", "predictions-00001.csv"}, "no half of an object"
    assert found >= {"ledger-00000.csv", "predictions-00000.csv"}


def test_a_store_that_does_not_answer_is_not_an_empty_one(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type(fsspec.filesystem("memory"))
    run("model.onnx", store, f"{store}-out", **OPTIONS)

    def silent(self: Any, path: str, **options: Any) -> Any:
        raise TimeoutError("no answer")

    monkeypatch.setattr(memory, "info", silent)
    with pytest.raises(InputError, match=r"^cannot read memory://\S+/03.png: no answer$"):
        run("model.onnx", f"{store}/03.png", "out", **OPTIONS)
    with pytest.raises(OutputError, match=r"^cannot read memory://\S+/run.json: no answer$"):
        storage_of(f"{store}-out").exists("run.json")
    monkeypatch.undo()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_under_urls(store: str, suffix: str) -> None:
    values = np.random.default_rng(0).random((20, 1, 4, 5), np.float32)
    file = io.BytesIO()
    np.save(file, values) if suffix == "npy" else np.savez(file, x=values)
    Path(f"many.{suffix}").write_bytes(file.getvalue())
    fsspec.filesystem("memory").pipe_file(f"{store}/many.{suffix}", file.getvalue())
    run("model.onnx", f"many.{suffix}", "out", batch_size=3, **OPTIONS)
    run("model.onnx", f"{store}/many.{suffix}", f"{store}-out", batch_size=3, **OPTIONS)
    found = {name: content.replace(f"{store}/".encode(), b"") for name, content in shards(f"{store}-out").items()}
    assert found == shards("out")


def test_patterns_lists_and_single_files(store: str) -> None:
    run("model.onnx", [f"{store}/1*.png", f"{store}/03.png"], "out", **OPTIONS)
    lines = Path("out/ledger-00000.csv").read_text() + Path("out/ledger-00001.csv").read_text()
    assert lines.count(f"{store}/1") == 10 and f"{store}/03.png,ok" in lines
    Path("list.txt").write_text(f"{store}/03.png\n{store}/none.png\nfile://{Path('local/04.png').resolve()}\n")
    summary = run("model.onnx", "@list.txt", "listed", **OPTIONS)
    assert summary.failures == ((f"{store}/none.png", f"no such file: {store}/none.png"),) and summary.ok == 2


def test_a_predictor_takes_what_run_takes(store: str) -> None:
    given = [store, f"{store}/deep", f"{store}/1*.png", f"{store}/03.png", f"{store}/none.png", f"{store}/none"]
    with Predictor("model.onnx", preprocess="0..1", errors="return") as predictor:
        found = [[(each.input, each.error) for each in predictor(one)] for one in given]
    assert [len(each) for each in found] == [22, 1, 10, 1, 1, 1]
    assert found[3] == [(f"{store}/03.png", "")]
    assert [each[0][1].partition(":")[0] for each in found[4:]] == ["no such file", "no such file or folder"]


def test_what_is_on_this_machine_only(store: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SourceError, match=r"^s3://b/m.onnx: models and checkpoints are files of this machine, or hf:"):
        run("s3://b/m.onnx", "local", "out", **OPTIONS)
    done = CliRunner().invoke(main, ["run", "model.onnx", "local", "-o", "out", "--save-images", f"{store}/pictures"])
    assert done.exit_code == 2
    assert done.stderr == f"error: --save-images takes a folder of this machine, not {store}/pictures\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_names_with_the_characters_of_patterns(store: str) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a[1].png", "d[2]/x.png", "a1.png"):
        memory.pipe_file(f"{store}/{name}", memory.cat_file(f"{store}/03.png"))
    run("model.onnx", [f"{store}/a[1].png", f"{store}/d[2]", f"{store}/a[12].png"], "out", **OPTIONS)
    rows = Path("out/ledger-00000.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [f"{store}/{name}" for name in ("a[1].png", "d[2]/x.png", "a1.png")]


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "no such file or folder: memory://"), ("*.gif", "no file matches"), ("deep/*x", "no file matches")],
)
def test_inputs_that_are_not_there(store: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run("model.onnx", f"{store}/{name}", "out", **OPTIONS)


def test_file_urls_are_paths(store: str) -> None:
    folder = Path("local").resolve()
    run("model.onnx", f"file://{folder}", f"file://{folder.parent}/out", **OPTIONS)
    assert len(shards("out")) == 6


@pytest.mark.parametrize("url", ["http://host/out", "ftp://host/out", "s3://", "nothing://x"])
def test_urls_that_cannot_be_written(store: str, url: str) -> None:
    with pytest.raises(UsageError, match=f"cannot write to {url}: expected a"):
        run("model.onnx", "local", url, **OPTIONS)


def test_an_unknown_service_and_a_missing_package(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"nothing://x: no service is known for nothing://"):
        run("model.onnx", "nothing://x", "out", **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "s3fs", None)
        message = f"s3://bucket/x needs s3fs, which is not installed; {install('s3')}"
        with pytest.raises(MissingDependencyError, match=f"^{re.escape(message)}$"):
            run("model.onnx", "s3://bucket/x", "out", **OPTIONS)
    with monkeypatch.context() as patch:  # fsspec names the packages that its own services need
        patch.setitem(sys.modules, "paramiko", None)
        patch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
        with pytest.raises(MissingDependencyError, match=r'^sftp://host/x\.png: SFTPFileSystem requires "paramiko"'):
            run("model.onnx", "sftp://host/x.png", "out", **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fsspec", None)
        with pytest.raises(
            MissingDependencyError, match=r"^memory://x needs fsspec, which is not .*; pip install fsspec$"
        ):
            run("model.onnx", "memory://x", "out", **OPTIONS)


def test_a_service_without_credentials_is_known(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(protocol: str) -> Any:
        def make() -> None:
            raise ValueError("give an account name")

        return make

    monkeypatch.setattr(fsspec, "get_filesystem_class", refused)
    with pytest.raises(InputError, match=r"^cannot read memory://x/a\.png: give an account name$"):
        run("model.onnx", "memory://x/a.png", "out", **OPTIONS)
    with pytest.raises(OutputError, match=r"^cannot write to memory://x/out: give an account name$"):
        run("model.onnx", "local", "memory://x/out", **OPTIONS)


def test_the_object_by_which_a_console_shows_a_folder_is_no_file(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type(fsspec.filesystem("memory"))
    find, ls = memory.find, memory.ls

    def marked_find(self: Any, path: str, *rest: Any, **named: Any) -> list[str]:
        folder = self._strip_protocol(path)
        return [*find(self, path, *rest, **named), f"{folder}/", f"{folder}/deep/"]

    def marked_ls(self: Any, path: str, detail: bool = True, **named: Any) -> list[Any]:
        if detail:  # for find
            return ls(self, path, detail, **named)
        inside = [] if path.endswith("-out") and not self.exists(path) else ls(self, path, False, **named)
        return [f"{self._strip_protocol(path).lstrip('/')}/", *inside]

    monkeypatch.setattr(memory, "find", marked_find)
    monkeypatch.setattr(memory, "ls", marked_ls)
    for given in (store, f"{store}/"):
        summary = run("model.onnx", given, f"{store}-out", overwrite=given != store, **OPTIONS)
        assert (summary.ok, summary.failed, summary.left_out) == (21, 1, (("txt", 1),))
    memory().pipe_file(f"{store}-other/deeper/x", b"")
    assert storage_of(f"{store}-other").create() == ["deeper"]


@pytest.mark.parametrize("size", [(3 << 20) + 1, 3 << 20])
def test_an_image_has_the_same_limit_under_a_url(store: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is read: at most one byte more than the limit is asked for."""
    monkeypatch.setattr(images, "_MOST_BYTES", 3 << 20)
    fsspec.filesystem("memory").pipe_file(f"{store}/large.png", bytes(size))
    Path("large.png").write_bytes(bytes(size))
    asked = []
    cat = type(fsspec.filesystem("memory")).cat_file

    def cat_file(self: Any, path: str, start: int | None = None, end: int | None = None, **rest: Any) -> bytes:
        asked.append(end)
        return cat(self, path, start=start, end=end, **rest)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", cat_file)
    if size > 3 << 20:
        for path in (f"{store}/large.png", "large.png"):
            with pytest.raises(InputError) as caught:
                images.read(path)
            assert str(caught.value) == f"{path} has 3 MiB, more than the limit of 3 MiB for an image file"
    else:
        assert images.read(f"{store}/large.png") == images.read("large.png") == bytes(size)
    assert asked == [(3 << 20) + 1]


def test_an_empty_object_of_a_store_without_empty_ranges(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> bytes:
        raise OSError("the requested range is not satisfiable")

    fsspec.filesystem("memory").pipe_file(f"{store}/empty.png", b"")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", refuse)
    with pytest.raises(InputError, match=r"empty\.png is empty \(0 bytes\), expected an image file"):
        images.read(f"{store}/empty.png")
    with pytest.raises(InputError, match=r"cannot read .*00\.png: the requested range is not satisfiable"):
        images.read(f"{store}/00.png")


def test_a_web_server_that_sends_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ignores ranges, and what it would send has no end."""
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp; pip install aiohttp")
    monkeypatch.setattr(images, "_MOST_BYTES", 3 << 20)
    sent = []

    class Endless(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            with suppress(OSError):
                while sum(sent) < 64 << 20:
                    sent.append(self.wfile.write(bytes(1 << 16)))

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/large.png"
        with pytest.raises(InputError, match=r"large\.png has 3 MiB, more than the limit of 3 MiB for an image file"):
            images.read(url)
        server.shutdown()
    assert sum(sent) < 64 << 20


def test_a_web_server_is_asked_once_and_its_errors_are_told() -> None:
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp; pip install aiohttp")
    asked = []

    class Codes(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append("HEAD")

        def do_GET(self) -> None:
            asked.append("GET")
            self.send_response(int(self.path[1:4]))
            self.end_headers()
            self.wfile.write(b"content")

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Codes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert images.read(f"{url}/200.png") == b"content" and asked == ["GET"]
        with pytest.raises(InputError, match=r"^no such file: http://\S+/404.png$"):
            images.read(f"{url}/404.png")
        with pytest.raises(InputError, match=r"^cannot read http://\S+/403.png: 403"):
            images.read(f"{url}/403.png")
        server.shutdown()
    with pytest.raises(InputError, match=r"^cannot read http://\S+/200.png: .*connect"):
        images.read(f"{url}/200.png")


def test_contents_under_urls_are_hashed_as_those_of_files(store: str) -> None:
    content = Path("local/00.png").read_bytes()
    assert remote.sha256(f"{store}/00.png") == hashlib.sha256(content).digest()
