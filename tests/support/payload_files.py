"""Files of every format that a command may read, each with a payload that creates a file, ``mark``, if it runs.

The folder also has modules of the names of libraries, a Ghostscript and a matplotlib configuration, whose payloads run
if anything imports, starts or reads them from the current folder.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import torch
from onnx import helper
from safetensors.torch import save_file
from torch import nn

from tests.support.onnx_files import affine_model

Members = dict[str, bytes]


class Payload:
    """Creates the file ``mark`` when it is unpickled, and is a dictionary of a tensor then."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return eval, (self.code,)

    @property
    def code(self) -> str:
        """An expression that does it."""
        return f"(open({self.mark!r}, 'w').close(), __import__('collections').OrderedDict())[1]"


class Net(nn.Module):
    """A module with a payload among its attributes, to be saved as a whole."""

    def __init__(self, payload: Payload | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        if payload is not None:
            self.payload = payload

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


def torch_file(value: object, zipped: bool = True) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def zip_file(members: Members) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def checkpoints(payload: Payload) -> dict[str, bytes]:
    """Pickles and archives of PyTorch, NumPy and joblib, by file name."""
    plain = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.ones(3)}
    array, buffer = np.array([payload, payload], object), io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    npy = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, x=array)
    npz = buffer.getvalue()
    buffer = io.BytesIO()
    joblib.dump({"a": array, "b": payload}, buffer)
    scripted = io.BytesIO()
    torch.jit.save(torch.jit.trace(Net(), torch.ones(1, 4)), scripted)
    with zipfile.ZipFile(io.BytesIO(scripted.getvalue())) as archive:
        script = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(script)).partition("/")[0]
    found = {
        "zip.pt": torch_file({"weight": payload}),
        "wrapped.pt": torch_file({"state_dict": plain, "optimizer": payload}),
        "legacy.pth": torch_file({"weight": payload}, zipped=False),
        "whole.pt": torch_file(Net(payload)),
        "whole-legacy.ckpt": torch_file(Net(payload), zipped=False),
        "script.pt": zip_file({**script, f"{root}/data.pkl": pickle.dumps(payload)}),
        "script-constants.pt": zip_file({**script, f"{root}/constants.pkl": pickle.dumps(payload)}),
        "package.pt": zip_file({"p/.data/extern_modules": b"", "p/m/model.pkl": pickle.dumps(payload), "p/m.py": b""}),
        "scalar.pt": torch_file({"weight": np.array(payload, object)}),
        "objects.npy": npy,
        "objects.npz": npz,
        "pickle.npz": zip_file({"x.npy": pickle.dumps(payload)}),
        "dump.joblib": buffer.getvalue(),
        "dump.joblib.gz": gzip.compress(buffer.getvalue()),
        "header.npy": b"\x93NUMPY\x01\x00"
        + len(header := f"{{'descr': {payload.code}, 'fortran_order': False, 'shape': (1,)}}\n".encode()).to_bytes(
            2, "little"
        )
        + header,
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found[f"protocol-{protocol}.pkl"] = pickle.dumps({"weight": payload}, protocol)
    for suffix in (
        "onnx",
        "safetensors",
        "npy",
        "npz",
        "png",
        "toml",
        "json",
        "txt",
        "engine",
        "pt2",
        "csv",
        "parquet",
    ):
        found[f"renamed.{suffix}"] = pickle.dumps({"weight": payload}, 2)
    found["renamed.engine.json"] = json.dumps({"engine_sha256": "", "schema_version": 1}).encode()
    return found


def programs(payload: Payload) -> dict[str, bytes]:
    """Exported programs, each with a payload in another place."""
    buffer = io.BytesIO()
    dim = torch.export.Dim("batch")
    torch.export.save(torch.export.export(Net().eval(), (torch.ones(2, 4),), dynamic_shapes=({0: dim},)), buffer)
    with zipfile.ZipFile(buffer) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(good)).partition("/")[0]
    content = torch_file(((torch.ones(2, 4), payload), {}))

    def edited(name: str, edit: Callable[[Any], None]) -> Members:
        value = json.loads(good[f"{root}/{name}"])
        edit(value)
        return {**good, f"{root}/{name}": json.dumps(value).encode()}

    def marked(kind: str, name: str) -> Members:
        entry = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
        config = f"data/{kind}/model_{kind}_config.json"
        return {**edited(config, lambda it: it["config"].update(extra=entry)), f"{root}/data/{kind}/{name}": content}

    def targeted(target: str) -> Members:
        return edited("models/model.json", lambda it: it["graph_module"]["graph"]["nodes"][0].update(target=target))

    def described(spec: str) -> Members:
        text = json.dumps([1, {"type": spec, "context": "null", "children_spec": []}])
        return edited("models/model.json", lambda it: it.update(in_spec=text))

    where = {
        "sample-inputs": {**good, f"{root}/data/sample_inputs/model.pt": content},
        "weights": marked("weights", "weight_0"),
        "constants": marked("constants", "tensor_0"),
        "weights-legacy": {**good, f"{root}/data/weights/model.pt": content},
        "constants-legacy": {**good, f"{root}/data/constants/model.pt": content},
        "opaque-object": {**good, f"{root}/data/constants/opaque_obj_0": content},
        "custom-object": {**good, f"{root}/data/constants/custom_obj_0": content},
        "library": {**good, f"{root}/data/aotinductor/model/x.so": content},
        "extra": {**good, f"{root}/extra/x.pkl": content},
        "operator": targeted("torch.ops.load_library"),
        "method": targeted("_operator.methodcaller"),
        "hub": targeted("torch.hub.load"),
        "expression": edited("models/model.json", lambda it: it["graph_module"].update(expr_str=payload.code)),
        "container": described("torch_of_file.Evil"),
        "range": edited("models/model.json", lambda it: it.update(range_constraints={payload.code: {}})),
        "older": {
            "serialized_exported_program.json": b"{}",
            "version": b"8.8",
            "serialized_state_dict.pt": content,
            "serialized_constants.pt": content,
            "serialized_example_inputs.pt": content,
        },
    }
    return {f"{name}.pt2": zip_file(members) for name, members in where.items()}


def texts(payload: Payload) -> dict[str, bytes]:
    """Recipes, suites, results, lists, labels, PostScript and YAML."""
    code = payload.code
    shell = f"touch {payload.mark}"
    recipe = '[model]\nnetwork = "{}"\ninput_shape = [4]\n'
    result = {"schema_version": 3, "request": {"cases": [{"model": "code_of_file:make"}], "variants": ["a:b"]}}
    found = {
        "factory.toml": recipe.format("code_of_file:make"),
        "attribute.toml": recipe.format("stn_infer.files:os.system"),
        "builtin.toml": recipe.format("builtins:eval") + f'options = {{ source = "{code}" }}\n',
        "beside.toml": recipe.format("fcn"),
        "suite.toml": '[[model]]\nsource = "code_of_file:make"\ninput_shapes = [[4]]\n',
        "suite-variant.toml": 'variants = ["code_of_file:make"]\n[[model]]\nsource = "fcn"\n',
        "suite-recipe.toml": '[[model]]\nsource = "factory.toml"\n',
        "suite-file.toml": '[[model]]\nfile = "model.onnx"\nsource = "code_of_file:make"\n',
        "result.json": json.dumps(result),
        "model.yaml": f"model: !!python/object/apply:os.system ['{shell}']\n",
        "yaml.toml": f"!!python/object/apply:os.system ['{shell}']\n",
        "list.txt": f"$({shell})\n`{shell}`\n|{shell}\n;{shell}\nfile:///etc/hostname\ninputs.npy\nprogram.png\n",
        "python.txt": f"{code}\nimport os; os.system('{shell}')\n",
        "program.png": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%{shell}) (w) file\n",
        "program.eps": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%{shell}) (w) file\n",
        "code.onnx": f"import os; os.system('{shell}')\n",
    }
    return {name: text.encode() for name, text in found.items()}


def onnx_files(folder: Path, payload: Payload) -> None:
    """ONNX files whose metadata, operators and external data name code or what must not be read."""
    model = affine_model()
    onnx.save(model, folder / "model.onnx")

    def saved(name: str, edit: Callable[[onnx.ModelProto], None]) -> None:
        copy = affine_model()
        edit(copy)
        (folder / name).write_bytes(copy.SerializeToString())

    def props(**entries: str) -> Callable[[onnx.ModelProto], None]:
        return lambda it: helper.set_model_props(it, {key.replace("__", "."): text for key, text in entries.items()})

    def domain(name: str, operator: str) -> Callable[[onnx.ModelProto], None]:
        def edit(it: onnx.ModelProto) -> None:
            it.graph.node.append(helper.make_node(operator, ["x"], ["unused"], domain=name, code=payload.code))
            it.opset_import.append(helper.make_opsetid(name, 1))

        return edit

    def external(location: str) -> Callable[[onnx.ModelProto], None]:
        def edit(it: onnx.ModelProto) -> None:
            tensor = it.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location)

        return edit

    saved("metadata-factory.onnx", props(stn_infer__source="code_of_file:make"))
    saved("metadata-recipe.onnx", props(stn_infer__source="factory.toml"))
    saved("metadata-pickle.onnx", props(stn_infer__source="zip.pt", stn_infer__labels=payload.code))
    saved("ort-config.onnx", props(ort_config=json.dumps({"session_options": {"library": "code.so"}})))
    for name, operator in (
        ("ai.onnx.contrib", "PyCustomOp"),
        ("org.pytorch.aten", "ATen"),
        ("com.microsoft", "PythonOp"),
    ):
        saved(f"{operator}.onnx", domain(name, operator))
    for index, location in enumerate(("zip.pt", "../outside.bin", "/proc/self/mem", f"|touch {payload.mark}")):
        saved(f"external-{index}.onnx", external(location))


LIBRARIES = (
    *("numpy", "torch", "onnx", "onnxruntime", "PIL", "click", "rich", "orjson", "pyarrow", "safetensors"),
    *("matplotlib", "filelock", "platformdirs", "tensorrt", "tensorrt_rtx", "json", "random", "sitecustomize"),
    *("usercustomize", "stn_infer", "code_of_file", "torch_of_file", "evil_backend", "readline"),
)


def write(folder: Path, mark: Path) -> list[str]:
    """Write them all into ``folder``; the names of the files to give to commands."""
    payload = Payload(mark)
    files = {**checkpoints(payload), **programs(payload), **texts(payload)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "beside.safetensors").write_bytes(files["zip.pt"])
    save_file({"layer.weight": torch.ones(3)}, folder / "meta.safetensors", {"code": payload.code, "format": "pt"})
    with (folder / "meta.safetensors").open("ab") as file:
        file.write(pickle.dumps(payload))
    onnx_files(folder, payload)
    for name in LIBRARIES:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise ImportError('hostile')\n")
    (folder / "matplotlibrc").write_text("backend: module://evil_backend\n")
    (folder / "bin").mkdir()
    for program in (folder / "bin" / "gs", folder / "gs", folder / "git", folder / "cmake"):
        program.write_text(f"#!/bin/sh\ntouch {mark}\n")
        program.chmod(0o755)
    np.save(folder / "inputs.npy", np.zeros((2, 1, 8, 8), np.float32))
    given = {path.name for path in folder.glob("*.onnx")} - {"model.onnx"}
    return sorted(given | set(files) | {"meta.safetensors"})
