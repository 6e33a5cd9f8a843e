"""A hash of everything that determines the outputs of a PyTorch model.

That is: parameters, buffers, the attributes of all modules, the code of an exported program, and the source
files of the user's own classes and functions. Attributes of other types than numbers, texts, arrays, functions,
modules and containers of them count by their type's name and their own attributes.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stn_infer.sources.load import LoadedModel

_OURS = ("torch", "stn_infer")  # known by their versions
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype, Path)
_MANGLED = re.compile(r"___torch_mangle_\d+")  # torch counts the classes that it has compiled
_DEEPEST = 100  # attributes within attributes


def fingerprint_module(loaded: LoadedModel) -> str:
    """The SHA-256, in hex, of everything that determines the outputs of a model at its input shapes."""
    found = _Fingerprint()
    found.add(loaded.module)
    found.add(loaded.input_shapes)
    found.add_sources()
    return found.hexdigest()


class _Fingerprint:
    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}  # by identity; also keeps alive what is seen
        self._modules: set[str] = set()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def add(self, value: Any, depth: int = 0) -> None:
        """Add any value, the same in each process."""
        import torch
        from torch import nn

        if isinstance(value, (*_PLAIN, torch.dtype, torch.device, torch.layout, torch.memory_format)):
            self._text(f"{type(value).__qualname__} {value!r}")
        elif id(value) in self._seen or depth > _DEEPEST:
            self._text(f"seen {self._seen.get(id(value), ('deep',))[0]}")
        else:
            if not isinstance(value, tuple):  # whether equal ones are the same may differ between processes
                self._seen[id(value)] = (len(self._seen), value)
            if isinstance(value, torch.Tensor):
                self._tensor(value)
            elif isinstance(value, np.ndarray):
                self._text(f"array {value.dtype} {value.shape}")
                self.add(value.tolist(), depth + 1) if value.dtype.hasobject else self._digest.update(value.tobytes())
            elif isinstance(value, enum.Enum):
                self._text(f"enum {type(value).__qualname__} {value.name}")
            elif isinstance(value, nn.Module):
                self._module(value, depth)
            else:
                self._other(value, depth)

    def add_sources(self) -> None:
        """Add the source files of the user's modules that were met, and of those that they use."""
        known: dict[str, bytes] = {}
        waiting = set(self._modules)
        while waiting:
            name = waiting.pop()
            file = _own_file(name)
            if name in known or file is None:
                continue
            known[name] = file.read_bytes()
            waiting |= set(_used(name)) - known.keys()
        for name in sorted(known):
            self._text(f"source {name}")
            self._digest.update(hashlib.sha256(known[name]).digest())

    def _text(self, text: str) -> None:
        content = text.encode("utf-8", "surrogatepass")
        self._digest.update(len(content).to_bytes(8, "little") + content)

    def _tensor(self, tensor: Tensor) -> None:
        import torch

        values = tensor.detach().cpu()
        if values.layout != torch.strided or values.is_quantized or values.is_complex():
            self._text(f"tensor {values.layout} {values.dtype} {tuple(values.shape)} {values.tolist()!r}")
            return
        values = values.contiguous()
        self._text(f"tensor {values.dtype} {tuple(values.shape)}")
        self._digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())

    def _module(self, module: nn.Module, depth: int) -> None:
        import torch
        from torch import fx

        kind = type(module)
        self._text(f"module {kind.__module__}.{kind.__qualname__} {module.extra_repr()}")
        self._modules.add(kind.__module__)
        attributes = {name: value for name, value in vars(module).items() if name not in _own_attributes()}
        if isinstance(module, fx.GraphModule):
            self._text(module.code)
            attributes = {name: value for name, value in attributes.items() if isinstance(value, torch.Tensor)}
        elif isinstance(module, torch.jit.ScriptModule):
            self._text(_MANGLED.sub("", getattr(module, "code", "")))
            attributes = {}
        else:
            self._made_at_run_time(kind)
        self._text(f"training {module.training}")
        for parts in (module.named_parameters(recurse=False), module.named_buffers(recurse=False), attributes.items()):
            for name, value in sorted(parts):
                self._text(name)
                self.add(value, depth + 1)
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            self.add(hook, depth + 1)
        for name, child in module.named_children():
            self._text(name)
            self.add(child, depth + 1)

    def _other(self, value: Any, depth: int) -> None:
        kind = type(value)
        if isinstance(value, Mapping):
            self._text(f"mapping {len(value)}")
            for key, item in value.items():
                self.add(key, depth + 1)
                self.add(item, depth + 1)
        elif isinstance(value, (list, tuple)):
            self._text(f"sequence {len(value)}")
            for item in value:
                self.add(item, depth + 1)
        elif isinstance(value, (set, frozenset)):
            self._text(f"set {sorted(map(repr, value))}" if all(isinstance(it, _PLAIN) for it in value) else "set")
        elif isinstance(value, functools.partial):
            self.add((value.func, value.args, value.keywords), depth + 1)
        elif isinstance(value, types.MethodType):
            self.add((value.__func__, value.__self__), depth + 1)
        elif isinstance(value, types.ModuleType):
            self._text(f"import {value.__name__}")
            self._modules.add(value.__name__)
        elif isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            self._callable(value, depth)
        else:
            self._text(f"object {kind.__module__}.{kind.__qualname__}")
            self._modules.add(kind.__module__)
            if kind.__module__.partition(".")[0] not in _OURS:
                self.add(_attributes(value), depth + 1)

    def _callable(self, value: type | Callable[..., Any], depth: int) -> None:
        self._text(f"callable {value.__module__}.{value.__qualname__}")
        self._modules.add(value.__module__ or "")
        if isinstance(value, types.FunctionType):
            self.add((value.__defaults__, value.__kwdefaults__), depth + 1)
            for cell in value.__closure__ or ():
                try:
                    self.add(cell.cell_contents, depth + 1)
                except ValueError:  # empty
                    self._text("empty")
            if _own_file(value.__module__) is None:
                self._code(value.__code__)

    def _made_at_run_time(self, kind: type) -> None:
        """Add the code of a class that has no source file of the user's."""
        if kind.__module__.partition(".")[0] in _OURS or _own_file(kind.__module__) is not None:
            return
        for name, member in sorted(vars(kind).items()):
            if isinstance(member, types.FunctionType):
                self._text(name)
                self._code(member.__code__)

    def _code(self, code: types.CodeType) -> None:
        self._text(f"code {code.co_code.hex()} {code.co_names} {code.co_varnames}")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self._text(repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant))


def _attributes(value: object) -> dict[str, Any]:
    """The attributes of an object, in its dictionary or in slots."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    found = {name: getattr(value, name) for name in slots if isinstance(name, str) and hasattr(value, name)}
    return dict(sorted({**found, **getattr(value, "__dict__", {})}.items()))


@functools.cache
def _own_attributes() -> frozenset[str]:
    """The attributes that every module has."""
    from torch import nn

    return frozenset(vars(nn.Module()))


def _own_file(module: str | None) -> Path | None:
    """The source file of a module of the user's; None for ours, for libraries, and if there is none."""
    found = sys.modules.get(module or "")
    if found is None or (module or "").partition(".")[0] in _OURS:
        return None
    try:
        name = inspect.getsourcefile(found)
    except TypeError:  # built in
        return None
    if name is None or not Path(name).is_file():
        return None
    file = Path(name).resolve()
    return None if any(file.is_relative_to(folder) for folder in _library_folders()) else file


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    """Where Python's own modules and installed packages are."""
    paths = sysconfig.get_paths()
    return tuple({Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def _used(module: str) -> Iterator[str]:
    """The names of the modules that a module's global names come from, and of its packages."""
    yield from (module.rpartition(".")[0],)
    for value in list(vars(sys.modules[module]).values()):
        name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str):
            yield name
