"""The stored choice: found again where nothing changed, and else a sentence that says what did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stn_infer.benchmarking import stored
from stn_infer.benchmarking.choice import BACKENDS, Setting
from stn_infer.benchmarking.stored import Place, find, folder, store
from stn_infer.errors import ModelError

SHA256 = "a" * 64
SETTING = Setting(
    precision="fp16",
    backend="ort",
    batch_size=16,
    threads=2,
    callers=1,
    median_ms=1.5,
    throughput=9000.0,
    error=2e-4,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/stn-infer/best"


def reason(sha256: str = SHA256, device: str = "cpu") -> str:
    with pytest.raises(ModelError) as raised:
        find(sha256, device)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_choice_is_found_again(cache: Path) -> None:
    path = store(SHA256, "cpu", SETTING)
    assert path.parent == cache == folder() and path.parent.stat().st_mode & 0o777 == 0o700
    assert find(SHA256, "cpu") == SETTING
    later = replace(SETTING, batch_size=64)
    assert store(SHA256, "cpu", later) == path
    assert find(SHA256, "cpu") == later


def test_the_key_is_the_file_and_the_device() -> None:
    store(SHA256, "cpu", SETTING)
    on_gpu = replace(SETTING, batch_size=256)
    store(SHA256, "cuda:0", on_gpu)
    assert (find(SHA256, "cpu"), find(SHA256, "cuda:0")) == (SETTING, on_gpu)
    assert reason(device="cuda:1") == "`stn-infer best` has not measured this file on cuda:1 here"
    assert reason("b" * 64) == "`stn-infer best` has not measured this file on cpu here"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stn_infer": "0.9"}, "stn-infer changed from 0.9 to "),
        ({"runtime": "onnxruntime 1.0"}, "the runtime changed from onnxruntime 1.0 to onnxruntime"),
        ({"plugin": ""}, "the plugin library changed from missing to here"),
        ({"plugin": "1 abc"}, "the plugin library changed from 1 abc to here"),
        ({"cpu": "a 486"}, "the CPU changed from a 486 to "),
        ({"features": "x86_64 avx"}, "the CPU's features changed from x86_64 avx to x86_64"),
        ({"cores": 333}, "the number of cores changed from 333 to "),
        ({"gpus": ("H200", "H200")}, "the GPU changed from H200, H200 to "),
    ],
)
def test_another_machine_or_version(changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "plugin_identity", lambda: "here")
    now = Place.of("ort")
    with monkeypatch.context() as then:
        then.setattr(Place, "of", lambda backend: replace(now, **changed))
        store(SHA256, "cpu", SETTING)
    text = reason()
    assert text.startswith("since `stn-infer best` measured this file, ") and said in text
    assert text.endswith("; run `stn-infer best` again")


def test_a_runtime_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = replace(SETTING, backend="tensorrt-rtx")
    with monkeypatch.context() as then:
        then.setattr(stored, "versions", lambda packages: dict.fromkeys(packages, "1.2.3"))
        store(SHA256, "cpu", setting)
    monkeypatch.setitem(stored._PACKAGES, "tensorrt-rtx", ("stn-infer-no-such-package",))
    assert reason() == (
        "tensorrt-rtx 1.2.3, which was the fastest, is not installed any more; run `stn-infer best` again"
    )


def _changed(path: Path, change: dict[str, Any]) -> bytes:
    content = json.loads(path.read_text())
    content["setting"] |= change
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: b"",
        lambda path: path.read_bytes()[:100],
        lambda path: b"\xff\xfe",
        lambda path: b"[]",
        lambda path: b"{}",
        lambda path: b'{"schema_version": 1}',
        lambda path: b"[" * 100_000,
        lambda path: _changed(path, {"batch_size": 0}),
        lambda path: _changed(path, {"threads": "2"}),
        lambda path: _changed(path, {"callers": -1}),
        lambda path: _changed(path, {"backend": "abacus"}),
        lambda path: _changed(path, {"precision": "fp8"}),
        lambda path: path.read_bytes().replace(b"a" * 64, b"b" * 64),
    ],
)
def test_a_damaged_file(damage: Any) -> None:
    path = store(SHA256, "cpu", SETTING)
    path.write_bytes(damage(path))
    text = reason()
    assert text.startswith(f"{path} is damaged (") and text.endswith("; run `stn-infer best` again")


def test_a_folder_in_its_place() -> None:
    path = store(SHA256, "cpu", SETTING)
    path.unlink()
    path.mkdir()
    assert f"{path} is damaged" in reason()


def test_a_file_of_another_version() -> None:
    path = store(SHA256, "cpu", SETTING)
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    assert reason() == f"{path} was written by another version of stn-infer; run `stn-infer best` again"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    path = store(SHA256, "cpu", SETTING)
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert reason().startswith(f"{path} belongs to another user, or is a link")


def test_every_backend_has_packages() -> None:
    assert set(stored._PACKAGES) == set(BACKENDS.values())
