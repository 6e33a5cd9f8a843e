"""A pickle is read without running anything: hostile ones execute nothing, and take neither time nor memory."""

from __future__ import annotations

import encodings.cp437  # noqa: F401  zipfile imports it for its first archive
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stn_infer.budget import Budget
from stn_infer.errors import WeightsError
from stn_infer.sources.checkpoints import load_weights
from stn_infer.sources.inert_pickle import LONGEST_INDEX, Global, Inert, PickleError, Reader, UnsupportedError
from stn_infer.sources.torch_file import read_legacy, read_zip

TENSOR = (
    b"\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89NtR"
)
"""The start of a dictionary {"w": a tensor [4]; after it, the key and the value of a second entry, and ``u.``."""

_watched: list[str] | None = None
_DANGEROUS = ("exec", "os.", "subprocess.", "import", "compile", "ctypes.", "socket.", "pickle.find_class", "shutil.")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and (event.startswith(_DANGEROUS) or (event == "open" and "w" in str(arguments[1]))):
        _watched.append(f"{event} {arguments[:1]}")


sys.addaudithook(_audit)  # cannot be removed; costs a comparison per event when nothing is watched


@pytest.fixture
def events() -> Iterator[list[str]]:
    """What was imported, executed or opened for writing during the test, as Python's audit events tell."""
    global _watched
    _watched = []
    yield _watched
    _watched = None


def loaded(content: bytes) -> Any:
    def persistent(identity: Any) -> Any:
        raise PickleError("a persistent id")

    return Reader(io.BytesIO(content), {}, persistent, len(content), Budget()).load()


def write_archive(path: Path, content: bytes, data: bytes = bytes(16), name: str = "data/0") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("net/data.pkl", content)
        archive.writestr(f"net/{name}", data)
    return path


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def call(module: str, name: str, *arguments: str) -> bytes:
    return f"c{module}\n{name}\n(".encode() + b"".join(map(text, arguments)) + b"tR"


MARK = "touch ran"
HOSTILE: dict[str, bytes] = {
    "os.system": call("os", "system", MARK),
    "posix.system": call("posix", "system", MARK),
    "builtins.eval": call("builtins", "eval", "open('ran', 'w')"),
    "builtins.exec": call("builtins", "exec", "open('ran', 'w')"),
    "builtins.__import__": call("builtins", "__import__", "antigravity"),
    "builtins.getattr": b"cbuiltins\ngetattr\n(cos\nX\n" + text("system") + b"tR",
    "operator.attrgetter": b"coperator\nattrgetter\n(" + text("system") + b"tR(cos\nos\ntR",
    "subprocess.Popen": b"csubprocess\nPopen\n((" + text("touch") + text("ran") + b"ttR",
    "a submodule, by a dotted name": b"\x8c\x05torch\x8c\x0ahub.loadx.y\x93(tR",
    "torch.load": call("torch.serialization", "load", "other.pt"),
    "torch.hub.load": call("torch.hub", "load", "someone/repo", "model"),
    "torch.jit.load": call("torch.jit._serialization", "load", "other.pt"),
    "torch.ops.load_library": call("torch._ops", "ops.load_library", "evil.so"),
    "cpp_extension": call("torch.utils.cpp_extension", "load", "evil", "evil.cpp"),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", "x"),
    "numpy.load": call("numpy", "load", "other.npy"),
    "runpy": call("runpy", "_run_code", "open('ran', 'w')"),
    "codecs.open": call("codecs", "open", "ran", "w"),
    "_codecs.encode with another codec": call("_codecs", "encode", "x", "zip"),
    "INST": b"(" + text(MARK) + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + text(MARK) + b"o",
    "NEWOBJ": b"cos\nsystem\n(" + text(MARK) + b"t\x81",
    "NEWOBJ_EX": b"cos\nsystem\n(" + text(MARK) + b"t}\x92",
    "the result of a call is called": call("os", "system", MARK) + b"(" + text(MARK) + b"tR",
    "__reduce__ as a name": b"cbuiltins\nobject.__reduce_ex__\n(I2\ntR",
    "BUILD on a class": b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__defaults__") + b"(tsb",
    "BUILD with slots": b"ctorch._utils\n_rebuild_tensor_v2\n(N}" + text("__code__") + b"Nstb",
    "__setstate__": b"ctorch.nn\nModule\n)\x81}(" + text("__setstate__") + b"cos\nsystem\n" + b"ub" + text(MARK) + b"b",
    "an extension code": b"\x82\x01",
    "a persistent id of text": b"Pos.system\n",
    "a persistent id of a global": b"cos\nsystem\nQ",
    "a persistent id of a module": b"("
    + text("module")
    + b"cos\nsystem\n"
    + text("/etc/passwd")
    + text("source")
    + b"tQ",
    "dump_patches": b"(" + text("module") + b"}" + text("x") + text("y") + b"tQ",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_nothing_is_run(
    content: bytes, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pt"
    if zipped:
        write_archive(path, TENSOR + text("evil") + content + b"u.")
    else:
        header = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
        path.write_bytes(header + b"\x80\x02}" + text("evil") + content + b"s." + pickle.dumps([], 2))
    state = dict(vars(torch._utils._rebuild_tensor_v2)), torch._utils._rebuild_tensor_v2.__defaults__
    events.clear()
    try:
        found = read_zip(path, Budget()) if zipped else read_legacy(path, Budget())
        assert isinstance(found["evil"], (Inert, Global, dict))
    except PickleError as error:
        assert "\n" not in str(error)
    assert events == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pt"]
    assert state == (dict(vars(torch._utils._rebuild_tensor_v2)), torch._utils._rebuild_tensor_v2.__defaults__)


def test_the_same_files_run_where_nobody_prevents_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The payloads are not harmless."""
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "INST", "OBJ"):
        pickle.loads(b"\x80\x02" + HOSTILE[name] + b".")
        os.remove("ran")


def test_placeholders_beside_tensors_do_not_keep_them_from_loading(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "net.pt", TENSOR + text("args") + HOSTILE["os.system"] + b"u.")
    assert torch.equal(load_weights(path)["w"], torch.zeros(4))


def storm(count: int) -> bytes:
    """Integer keys that all have the same hash."""
    keys = [pickle.dumps((2**61 - 1) * i, 2)[2:-1] + b"N" for i in range(1, count)]
    return b"}(" + b"".join(keys) + b"u"


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nested lists": (lambda: b"]" * 150_000 + b"a" * 149_999, ""),
    "nested tuples as a key": (lambda: b"}" + b"N" + b"\x85" * 150_000 + b"Ns", ""),
    "nested tuples in a set": (lambda: b"(" + b"N" + b"\x85" * 150_000 + b"\x91", ""),
    "nested placeholders": (lambda: b"N" + b"\x85".join([b"cb\nc\n"]) + b"".join([b"q\x000h\x00"] * 1000), ""),
    "two to the power of a hundred": (lambda: b"N" + b"2\x86" * 100, ""),
    "a memo of huge indices": (lambda: b"N" + b"".join(b"r" + i.to_bytes(4, "big") for i in range(100_000)), ""),
    "keys of equal hashes": (lambda: storm(100_000), ""),
    "a text that claims 4 GiB": (lambda: b"X\xff\xff\xff\xff", "damaged"),
    "bytes that claim 2^62": (lambda: b"\x8e" + (1 << 62).to_bytes(8, "little"), "damaged"),
    "a number of many digits": (lambda: b"I" + b"9" * 60_000 + b"\n", "damaged"),
    "no end": (lambda: b"N" * 1000, "damaged"),
    "an empty stack": (lambda: b"0000", "damaged"),
    "marks": (lambda: b"(" * 100_000 + b"t" * 100_000, ""),
    "an item for a number": (lambda: b"K\x01Na", "damaged"),
}


@pytest.mark.parametrize(("make", "message"), BOMBS.values(), ids=BOMBS.keys())
def test_bombs(make: Callable[[], bytes], message: str) -> None:
    content = b"\x80\x04" + make() + (b"" if message == "damaged" and b"N" * 1000 in make() else b".")
    if message:
        with pytest.raises(PickleError, match=message):
            loaded(content)
    else:
        loaded(content)


def test_a_pickle_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(io.BytesIO(b"N0" * 10_000 + b"N."), {}, lambda identity: None, 1 << 20, Budget(seconds=1e-9))
    with pytest.raises(UnsupportedError, match=r"takes too long.*STN_TRIAL_SECONDS"):
        reader.load()


def nested(inner: bytes, count: int) -> bytes:
    """A pickle in which ``torch.storage._load_from_bytes`` is called many times, each time with the same bytes."""
    call_again = b"h\x00h\x01\x85R"
    stored = b"B" + len(inner).to_bytes(4, "little") + inner
    return b"\x80\x03ctorch.storage\n_load_from_bytes\nq\x000" + stored + b"q\x010(" + call_again * count + b"t."


def test_nested_pickles_share_the_limits(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    copies = (
        b"ccollections\nOrderedDict\nq\x000](" + b"NN\x86" * 1000 + b"eq\x010" + b"(" + b"h\x00h\x01\x85R" * 20 + b"t."
    )
    path.write_bytes(nested(b"\x80\x03" + copies, 3))
    assert len(read_legacy(path, Budget())) == 3
    path.write_bytes(nested(b"\x80\x03" + copies, 200))  # 200 x 20 dictionaries of 1000 pairs
    with pytest.raises(PickleError, match="it builds far more than it contains"):
        read_legacy(path, Budget())
    path.write_bytes(nested(b"\x80\x03" + b"N0" * 10_000 + b"N.", 300))
    with pytest.raises(UnsupportedError, match="takes too long"):
        read_legacy(path, Budget(seconds=0.1))


def test_small_arrays_are_data() -> None:
    block = b"B" + (60_000).to_bytes(4, "little") + bytes(60_000) + b"0"
    count = LONGEST_INDEX // 60_000 + 10
    assert loaded(b"\x80\x03" + block * count + b"N.") is None


@pytest.mark.parametrize(
    ("change", "data", "message"),
    [
        ((b"K\x04tQ", b"M\x00\x40tQ"), bytes(16), "are missing or have another size"),
        ((b"K\x04tQ", b"J\xff\xff\xff\xfftQ"), bytes(16), "damaged"),
        ((b"K\x04\x85", b"M\x00\x40\x85"), bytes(16), "a tensor is larger than its data"),
        ((b"K\x00K\x04\x85", b"K\x01K\x04\x85"), bytes(16), "a tensor is larger than its data"),
        ((b"K\x04\x85K\x01\x85", b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85K\x00\x85"), bytes(16), "repeats its data"),
        ((b"FloatStorage", b"EvilStorage\x20"), bytes(16), "are not supported"),
        ((b"X\x01\x00\x00\x000", b"X\x04\x00\x00\x00../0"), bytes(16), "are missing"),
        ((b"X\x01\x00\x00\x000", b"\x85"), bytes(16), "damaged"),
    ],
)
def test_what_a_tensor_claims_is_compared_with_the_file(
    change: tuple[bytes, bytes], data: bytes, message: str, tmp_path: Path
) -> None:
    content = TENSOR + b"NNu."
    assert change[0] in content
    path = write_archive(tmp_path / "net.pt", content.replace(change[0], change[1], 1), data)
    with pytest.raises(WeightsError, match=message):
        load_weights(path)
