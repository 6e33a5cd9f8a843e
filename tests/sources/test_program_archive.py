"""A .pt2 file never runs code: a member that could is refused before PyTorch reads it; PyTorch's own files load."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stn_infer.errors import SourceError
from stn_infer.sources.program_archive import _is_container, _is_expression, _is_operator, opened_program

Members = dict[str, bytes]


class Net(nn.Module):
    """A layer, a buffer, arithmetic on a size, and two outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.layer(x) + self.shift
        return {"y": y, "pairs": y.reshape(x.shape[0] // 2, 6)}


class Payload:
    """Creates the file ``mark`` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return eval, (f"(open({self.mark!r}, 'w').close(), ((__import__('torch').ones(2, 4),), {{}}))[1]",)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "ok.pt2"
    dim = 2 * torch.export.Dim("half")
    torch.export.save(torch.export.export(Net().eval(), (torch.ones(4, 4),), dynamic_shapes=({0: dim},)), path)
    return path


def rewritten(program: Path, path: Path, change: Callable[[Members], Members | None]) -> Path:
    with zipfile.ZipFile(program) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members = change(members) or members
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def edited(members: Members, name: str, edit: Callable[[Any], None]) -> None:
    content = json.loads(members[name])
    edit(content)
    members[name] = json.dumps(content).encode()


def test_a_program_that_pytorch_saved_loads(program: Path) -> None:
    with opened_program(program) as file:
        loaded = torch.export.load(file).module()
    x = torch.rand(6, 4)
    expected = torch.export.load(program).module()(x)
    assert torch.equal(loaded(x)["y"], expected["y"]) and torch.equal(loaded(x)["pairs"], expected["pairs"])


def _pickle_as(kind: str) -> Callable[[Members, bytes], None]:
    """Mark a weight or constant as pickled."""

    def change(members: Members, content: bytes) -> None:
        config = f"ok/data/{kind}/model_{kind}_config.json"

        def mark(value: Any) -> None:
            entries = value["config"]
            name = "weight_0" if kind == "weights" else "tensor_0"
            entries["layer.weight" if kind == "weights" else "extra"] = {
                "path_name": name,
                "is_param": False,
                "use_pickle": True,
                "tensor_meta": None,
            }
            members[f"ok/data/{kind}/{name}"] = content

        edited(members, config, mark)

    return change


HOSTILE: dict[str, Callable[[Members, bytes], None]] = {
    "sample inputs": lambda members, content: members.update({"ok/data/sample_inputs/model.pt": content}),
    "weights": _pickle_as("weights"),
    "constants": _pickle_as("constants"),
    "weights in the older format": lambda members, content: members.update({"ok/data/weights/model.pt": content}),
    "constants in the older format": lambda members, content: members.update({"ok/data/constants/model.pt": content}),
    "objects": lambda members, content: members.update({"ok/data/constants/opaque_obj_0": content}),
    "TorchScript objects": lambda members, content: members.update({"ok/data/constants/custom_obj_0": content}),
    "compiled libraries": lambda members, content: members.update({"ok/data/aotinductor/model/x.so": content}),
}


@pytest.mark.parametrize("hide", HOSTILE.values(), ids=HOSTILE)
def test_hidden_code_in_an_archive_does_not_run(
    program: Path, tmp_path: Path, hide: Callable[[Members, bytes], None]
) -> None:
    mark = tmp_path / "ran"
    content = pickled(Payload(mark))
    bad = rewritten(program, tmp_path / "bad.pt2", lambda members: hide(members, content))
    with pytest.raises(SourceError, match="could run code") as caught, opened_program(bad) as file:
        torch.export.load(file)
    assert not mark.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda program: program["graph_module"]["graph"]["nodes"][0].update(target="torch.hub.load"),
        lambda program: program["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.load_library"),
        lambda program: program["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.aten.from_file.default"),
        lambda program: program["graph_module"]["graph"]["nodes"][0].update(target="_operator.methodcaller"),
        lambda program: program["graph_module"]["graph"]["nodes"][0].update(target="#x:y"),
        lambda program: program["graph_module"].update(expr_str="__import__('os').system('true')"),
        lambda program: program.update(
            in_spec=json.dumps([1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}])
        ),
    ],
)
def test_names_that_could_run_code_are_refused(program: Path, tmp_path: Path, change: Callable[[Any], None]) -> None:
    bad = rewritten(program, tmp_path / "bad.pt2", lambda members: edited(members, "ok/models/model.json", change))
    with pytest.raises(SourceError, match="could run code"), opened_program(bad):
        pass


def test_two_readers_see_one_archive(program: Path, tmp_path: Path) -> None:
    for extra in ("OK/data/sample_inputs/MODEL.pt", "ok/data/sample_inputs/Model.pt", "other/x"):
        bad = rewritten(program, tmp_path / "bad.pt2", lambda members, extra=extra: members.update({extra: b""}))  # type: ignore[misc]
        with pytest.raises(SourceError, match="another kind of zip archive"), opened_program(bad):
            pass
    unknown = rewritten(program, tmp_path / "u.pt2", lambda members: members.update({"ok/whatever.py": b"x"}))
    with opened_program(unknown) as file, zipfile.ZipFile(file) as archive:
        assert "ok/whatever.py" not in archive.namelist()


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_archive_is_a_one_line_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pt2"
    path.write_bytes(content)
    with (
        pytest.raises(SourceError, match=r"expected a program saved by torch\.export\.save") as caught,
        opened_program(path),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_truncated_archives_and_archive_bombs_are_refused(program: Path, tmp_path: Path) -> None:
    whole = program.read_bytes()
    path = tmp_path / "bad.pt2"
    for size in range(0, len(whole), len(whole) // 23):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError), opened_program(path):
            pass
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ok/models/model.json", b"[" * 3_000_000)
        archive.writestr("ok/data/weights/weight_0", bytes(200_000_000))
    with pytest.raises(SourceError, match="unpacks to"), opened_program(path):
        pass
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ok/models/model.json", b"[" * 3_000_000)
    with pytest.raises(SourceError), opened_program(path):
        pass


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Symbol('s31', positive=True, integer=True)", True),
        ("Mul(Integer(2), Symbol('s0', integer=True))", True),
        ("s0 + 2*s1 - 1", True),
        ("Pow(Symbol('s0'), Integer(2))", True),
        ("Max(1, s0)//2", True),
        ("Pow(Integer(9), Integer(999999999))", False),
        ("9**9**9", False),
        ("open('x')", False),
        ("Symbol('s0').__class__", False),
        ("Symbol('__import__(1)')", False),
        ("[x for x in ()]", False),
        ("(lambda: 1)()", False),
        ("Integer(2", False),
        ("f'{s0}'", False),
        ("(" * 9000, False),
    ],
)
def test_shape_expressions(text: str, plain: bool) -> None:
    assert _is_expression(text) == plain


def test_operators_and_containers() -> None:
    assert all(map(_is_operator, ["torch.ops.aten.add.Tensor", "_operator.getitem", "torch.sym_max", "math.ceil"]))
    assert not any(map(_is_operator, ["torch.load", "torch.ops.inductor.x", "_operator.attrgetter", "", "os.system"]))
    leaf = {"type": None, "context": None, "children_spec": []}
    assert _is_container(json.dumps([1, {"type": "builtins.dict", "context": '["a"]', "children_spec": [leaf]}]))
    enum = {"type": "builtins.dict", "context": '[{"__enum__": true, "fqn": "os:x"}]', "children_spec": [leaf]}
    assert not _is_container(json.dumps([1, enum]))
    assert not _is_container("{}") and not _is_container("[1]") and not _is_container("x")
