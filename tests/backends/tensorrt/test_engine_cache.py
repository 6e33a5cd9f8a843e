"""Engines and their sidecars: missing, truncated, replaced and stale ones are detected."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from stn_infer.backends.tensorrt.engine_cache import (
    EngineCache,
    EngineKey,
    InputProfile,
    Sidecar,
    default_cache_folder,
    load_engine,
    sidecar_path,
    write_engine,
)
from stn_infer.cli.engines.cache import command
from stn_infer.cli.main import main
from stn_infer.errors import ModelError, OutputError, UsageError
from tests.support.helpers import answers_of, nothing_larger_than

KEY = EngineKey(
    graph_sha256="a" * 64,
    weights_sha256="b" * 64,
    runtime="tensorrt",
    runtime_version="11.4.0.106",
    gpu="a GPU",
    sm="sm89",
    plugin_sha256="c" * 64,
    profiles=((InputProfile("x", (1, 3), (2, 3), (4, 3)),),),
    precision="float32",
    flags=(),
)
ENGINE = bytes(range(256)) * 8


def sidecar(key: EngineKey = KEY, engine: bytes = ENGINE, source: str = "m.onnx", at: str = "2026-01-01") -> Sidecar:
    digest = hashlib.sha256(engine).hexdigest()
    return Sidecar(key, digest, len(engine), source, at, 1.5, ("node",), {"stn_infer.source": "m"})


def test_engine_and_sidecar_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    write_engine(path, ENGINE, sidecar())
    assert load_engine(path) == (ENGINE, sidecar())
    assert sidecar_path(path).name == "m.engine.json"
    assert json.loads(sidecar_path(path).read_text())["schema_version"] == 2


def test_an_engine_without_sidecar_loads(tmp_path: Path) -> None:
    path = tmp_path / "foreign.plan"
    path.write_bytes(ENGINE)
    assert load_engine(path) == (ENGINE, None)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "expected a TensorRT engine, found No such file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(ENGINE[:100]), "has 100 of 2048 bytes: it is truncated"),
        (lambda path: path.write_bytes(ENGINE[::-1]), "is not the engine that m.engine.json describes"),
        (lambda path: sidecar_path(path).write_text("{"), "m.engine.json is damaged"),
        (lambda path: sidecar_path(path).write_text("[]"), "m.engine.json is damaged"),
        (lambda path: sidecar_path(path).write_text('{"schema_version": 2}'), "m.engine.json is damaged"),
        (lambda path: sidecar_path(path).write_text('{"schema_version": 1}'), "another version of stn-infer"),
    ],
)
def test_every_engine_error_is_one_line(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "m.engine"
    write_engine(path, ENGINE, sidecar())
    damage(path)  # type: ignore[operator]
    with pytest.raises(ModelError, match=message) as caught:
        load_engine(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_an_engine(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a TensorRT engine"):
        load_engine(tmp_path)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"graph_sha256": "d"}, "the model's graph changed"),
        ({"weights_sha256": "d"}, "the model's weights changed"),
        ({"runtime_version": "11.5"}, "the runtime's version changed from 11.4.0.106 to 11.5"),
        ({"gpu": "another"}, "the GPU changed from a GPU to another"),
        ({"plugin_sha256": "d"}, "the plugin library changed"),
        ({"plugin_sha256": ""}, "the plugin library changed from used to not used"),
        ({"flags": ("tf32",)}, "the flags changed from none to tf32"),
        (
            {"profiles": ((InputProfile("x", (1, 3), (2, 3), (8, 3)),),)},
            "the optimization profiles changed from x=1x3:2x3:4x3 to x=1x3:2x3:8x3",
        ),
        (
            {"profiles": (*KEY.profiles, (InputProfile("x", (5, 3), (8, 3), (9, 3)),))},
            "the optimization profiles changed from x=1x3:2x3:4x3 to x=1x3:2x3:4x3; x=5x3:8x3:9x3",
        ),
    ],
)
def test_each_key_field_matters_and_is_reported(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    cache = EngineCache(tmp_path / "cache")
    cache.store(ENGINE, sidecar())
    wanted = replace(KEY, **change)  # type: ignore[arg-type]
    assert wanted.digest != KEY.digest
    assert cache.find(wanted) is None
    assert cache.why_missing(wanted, "m.onnx") == f"since it was last built: {reason}"
    assert wanted.differences(KEY) == (reason,)


def test_the_cache_finds_what_it_stored_and_nothing_damaged(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "a" / "cache")
    assert cache.find(KEY) is None
    assert cache.why_missing(KEY, "m.onnx") == "no engine of m.onnx is cached"
    path = cache.store(ENGINE, sidecar())
    assert cache.find(KEY) == (ENGINE, sidecar())
    path.write_bytes(ENGINE[:-1])
    assert cache.find(KEY) is None
    assert cache.why_missing(KEY, "m.onnx") == "the cached engine is damaged"


def test_a_rebuild_is_compared_with_the_nearest_engine_of_the_same_source(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.store(ENGINE, sidecar(replace(KEY, sm="sm75", runtime_version="10.0"), at="2026-03-01"))
    cache.store(ENGINE, sidecar(replace(KEY, sm="sm80"), at="2026-01-01"))
    cache.store(ENGINE, sidecar(replace(KEY, sm="sm86"), at="2026-02-01"))
    cache.store(ENGINE, sidecar(replace(KEY, flags=("tf32",)), source="other.onnx"))
    wanted = "since it was last built: the GPU's architecture changed from sm86 to sm89"
    assert cache.why_missing(KEY, "m.onnx") == wanted


def test_a_cache_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot create the engine cache"):
        EngineCache(tmp_path / "file" / "cache").store(ENGINE, sidecar())


def test_a_full_disk_separates_no_engine_from_its_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    write_engine(path, ENGINE, sidecar())
    larger = ENGINE * 10
    with nothing_larger_than(len(ENGINE)), pytest.raises(OutputError, match="File too large"):
        write_engine(path, larger, sidecar(engine=larger))
    assert load_engine(path) == (ENGINE, sidecar()), "as it was"
    long = replace(
        sidecar(), metadata={"labels": "a" * 2 * len(larger)}, engine_sha256=sidecar(engine=larger).engine_sha256
    )
    with nothing_larger_than(len(larger)), pytest.raises(OutputError, match="File too large"):
        write_engine(path, larger, long)
    assert load_engine(path) == (larger, None), "none but the old one's"
    assert [file.name for file in tmp_path.iterdir()] == ["m.engine"]


_PAIRS = """
import hashlib, os, pickle, sys
from pathlib import Path
from stn_infer.backends.tensorrt.engine_cache import Sidecar, load_engine, write_engine
path, key = Path(sys.argv[1]), pickle.loads(bytes.fromhex(sys.argv[2]))
sys.stdin.readline()
for _ in range(100):
    engine = os.urandom(4096)
    write_engine(path, engine, Sidecar(key, hashlib.sha256(engine).hexdigest(), len(engine), "m.onnx", "", 1.0))
    load_engine(path)
"""


def test_two_writers_of_one_path_leave_an_engine_and_its_own_sidecar(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _PAIRS, str(tmp_path / "m.engine"), pickle.dumps(KEY).hex()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    writers = [subprocess.Popen(arguments, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    outputs = answers_of(writers)
    assert [writer.returncode for writer in writers] == [0, 0], outputs
    load_engine(tmp_path / "m.engine")


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "stn-infer" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path.home() / ".cache" / "stn-infer" / "engines"


def test_only_the_user_can_access_the_cache(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    path = cache.store(ENGINE, sidecar())
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (path, sidecar_path(path))} == {0o600}
    cache.folder.chmod(0o755)
    cache.store(ENGINE, sidecar())
    assert cache.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give files to others")
def test_files_of_another_user_are_rejected(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    path = cache.store(ENGINE, sidecar())
    for file in (path, sidecar_path(path)):
        os.chown(file, 12345, -1)
        assert cache.find(KEY) is None
        os.chown(file, 0, -1)
    os.chown(path, 12345, -1)
    assert cache.why_missing(KEY, "m.onnx") == "the cached engine belongs to another user"
    os.chown(cache.folder, 12345, -1)
    for call in (lambda: cache.store(ENGINE, sidecar()), cache.clear, lambda: cache.locked(KEY).__enter__()):
        with pytest.raises(OutputError, match="belongs to another user; give another folder with --cache"):
            call()


def test_a_link_in_the_cache_is_not_followed(tmp_path: Path) -> None:
    write_engine(tmp_path / "other.engine", ENGINE, sidecar())
    cache = EngineCache(tmp_path / "cache")
    cache.folder.mkdir()
    cache.path(KEY).symlink_to(tmp_path / "other.engine")
    sidecar_path(cache.path(KEY)).symlink_to(sidecar_path(tmp_path / "other.engine"))
    assert cache.find(KEY) is None


def test_the_least_recently_used_engine_is_deleted_first(tmp_path: Path) -> None:
    keys = [replace(KEY, sm=f"sm{index}") for index in range(4)]
    one = len(ENGINE) + 2000  # with its sidecar
    cache = EngineCache(tmp_path, limit=3 * one)
    for index, key in enumerate(keys[:3]):
        cache.store(ENGINE, sidecar(key))
        os.utime(cache.path(key), (index, index))
    assert cache.find(keys[0]) is not None  # used now
    EngineCache(tmp_path, limit=2 * one).store(ENGINE, sidecar(keys[3]))
    assert [key.sm for key in keys if cache.find(key)] == ["sm0", "sm3"]
    assert {entry.sidecar.key.sm for entry in cache.entries() if entry.sidecar} == {"sm0", "sm3"}
    EngineCache(tmp_path, limit=0).store(ENGINE, sidecar(keys[1]))
    assert [key.sm for key in keys if cache.find(key)] == ["sm1"], "what was just built stays"
    assert [entry.path for entry in cache.clear()] == [cache.path(keys[1])]
    assert cache.entries() == () and EngineCache(tmp_path / "none").clear() == ()


def test_an_entry_that_is_being_built_is_not_deleted(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.store(ENGINE, sidecar())
    with cache.locked(KEY):
        assert cache.clear() == ()
    assert len(cache.clear()) == 1


@pytest.mark.parametrize("value", ["x", "-1", "nan", "inf"])
def test_an_invalid_limit_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    monkeypatch.setenv("STN_ENGINE_CACHE_GIB", value)
    with pytest.raises(UsageError, match="STN_ENGINE_CACHE_GIB is a number of gibibytes"):
        EngineCache(tmp_path)


_WRITER = """
import hashlib, os, pickle, sys
from pathlib import Path
from stn_infer.backends.tensorrt.engine_cache import EngineCache, Sidecar
cache, key = EngineCache(Path(sys.argv[1])), pickle.loads(bytes.fromhex(sys.argv[2]))
sys.stdin.readline()
built = 0
for round in range(40):
    with cache.locked(key):
        found = cache.find(key)
        if found is None:
            engine = os.urandom(4096)  # no two builds are alike
            digest = hashlib.sha256(engine).hexdigest()
            cache.store(engine, Sidecar(key, digest, len(engine), "m.onnx", "2026-01-01", 1.0))
            built += 1
    found = found or cache.find(key)
    assert found is not None, "unusable"
print(built)
"""


def test_several_writers_of_one_key_leave_it_usable(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _WRITER, str(tmp_path), pickle.dumps(KEY).hex()]
    writers = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = answers_of(writers)
    assert [writer.returncode for writer in writers] == [0, 0, 0], outputs
    assert sum(int(out) for out, _ in outputs) == 1, "who comes second finds what the first has built"


def test_cache_list_and_clear(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.store(ENGINE, sidecar())
    one = CliRunner().invoke(command, ["list", "--cache", str(tmp_path)], catch_exceptions=False)
    assert one.output.splitlines()[-1].startswith("1 engine, ")
    (tmp_path / "damaged.engine").write_bytes(ENGINE)
    listed = CliRunner().invoke(command, ["list", "--cache", str(tmp_path)], catch_exceptions=False)
    assert listed.exit_code == 0 and "m.onnx, tensorrt 11.4.0.106, a GPU, float32" in listed.output
    assert "damaged" in listed.output and "2 engines" in listed.output
    as_json = CliRunner().invoke(main, ["cache", "list", "--json", "--cache", str(tmp_path)], catch_exceptions=False)
    entries = json.loads(as_json.output)["entries"]
    assert {entry["path"] for entry in entries} == {str(cache.path(KEY)), str(tmp_path / "damaged.engine")}
    cleared = CliRunner().invoke(command, ["clear", "--cache", str(tmp_path)], catch_exceptions=False)
    assert cleared.output.startswith("deleted 2 engines") and not list(tmp_path.glob("*.engine"))
