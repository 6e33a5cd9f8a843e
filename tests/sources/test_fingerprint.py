"""Whatever decides a model's outputs changes its fingerprint, and nothing else does."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from stn_infer.metadata import ModelMetadata
from stn_infer.sources.fingerprint import fingerprint_module
from stn_infer.sources.load import LoadedModel, load_source
from tests.support.paths import ROOT


@dataclass(frozen=True, slots=True)
class Settings:
    gain: float = 1.0


class Net(nn.Module):
    """A user's module: a parameter, a non-persistent buffer, and whatever else is given, as an attribute."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0, **others: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), scale))
        self.register_buffer("shift", torch.full((3,), shift), persistent=False)
        for name, value in others.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3] * self.scale + self.shift


class Squared(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) ** 2


class Slotted:
    __slots__ = ("gain",)

    def __init__(self, gain: float) -> None:
        self.gain = gain


def closed_over(gain: float) -> Callable[[float], float]:
    return lambda x: x * gain


def made_at_run_time(power: int) -> nn.Module:
    """An instance of a class without a source file."""
    namespace: dict[str, Any] = {"Net": Net}
    exec(f"class Made(Net):\n    def forward(self, x): return super().forward(x) ** {power}\n", namespace)
    made: nn.Module = namespace["Made"]()
    return made


def hooked(gain: float) -> nn.Module:
    net = Net()
    net.register_forward_hook(functools.partial(_multiplied, gain))
    return net


def _multiplied(gain: float, module: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
    return output * gain


def traced(function: Callable[[torch.Tensor], torch.Tensor], constant: float = 1.0) -> nn.Module:
    """An exported program's module: the graph is in its code, and constants are attributes."""

    class Traced(Net):
        def __init__(self) -> None:
            super().__init__()
            self.constant = torch.tensor(constant)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(super().forward(x)) * self.constant

    return fx.symbolic_trace(Traced())


def of(module: nn.Module, shape: tuple[int, ...] = (1, 4, 5)) -> str:
    return fingerprint_module(LoadedModel("net", module, (shape,), ModelMetadata(), "factory"))


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "a parameter": (Net, lambda: Net(2.0)),
    "a buffer": (Net, lambda: Net(shift=1.0)),
    "a type": (Net, lambda: Net().double()),
    "a class": (Net, Squared),
    "a mode": (Net, lambda: Net().eval()),
    "a number": (lambda: Net(gain=1.0), lambda: Net(gain=2.0)),
    "numbers in containers": (lambda: Net(gain={"a": [1, (2,)]}), lambda: Net(gain={"a": [1, (3,)]})),
    "a tensor beside the buffers": (lambda: Net(gain=torch.ones(2)), lambda: Net(gain=torch.zeros(2))),
    "an array": (lambda: Net(gain=np.ones(2)), lambda: Net(gain=np.zeros(2))),
    "a set": (lambda: Net(gain={"a", "b"}), lambda: Net(gain={"a", "c"})),
    "a function": (lambda: Net(gain=torch.sin), lambda: Net(gain=torch.cos)),
    "a closure": (lambda: Net(gain=closed_over(1.0)), lambda: Net(gain=closed_over(2.0))),
    "a partial function": (
        lambda: Net(gain=functools.partial(round, ndigits=1)),
        lambda: Net(gain=functools.partial(round, ndigits=2)),
    ),
    "a data class": (lambda: Net(gain=Settings(1.0)), lambda: Net(gain=Settings(2.0))),
    "an object with slots": (lambda: Net(gain=Slotted(1.0)), lambda: Net(gain=Slotted(2.0))),
    "a module in a list": (lambda: Net(parts=[Net()]), lambda: Net(parts=[Net(2.0)])),
    "a class made at run time": (lambda: made_at_run_time(2), lambda: made_at_run_time(3)),
    "a hook": (lambda: hooked(1.0), lambda: hooked(2.0)),
    "a program's graph": (lambda: traced(torch.sin), lambda: traced(torch.cos)),
    "a program's constant": (lambda: traced(torch.sin), lambda: traced(torch.sin, 2.0)),
    "a program's script": (
        lambda: torch.jit.trace(Net(), torch.ones(1, 3)),
        lambda: torch.jit.trace(Squared(), torch.ones(1, 3)),
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(("first", "second"), PAIRS.values(), ids=PAIRS)
def test_what_decides_an_output_is_in_the_fingerprint(
    first: Callable[[], nn.Module], second: Callable[[], nn.Module]
) -> None:
    assert of(first()) == of(first()), "the same again"
    assert of(first()) != of(second())


def test_shapes_are_in_the_fingerprint_and_cycles_end() -> None:
    assert of(Net()) != of(Net(), (1, 5, 4))
    ring: list[object] = []
    ring.append(ring)
    assert of(Net(gain=ring)) == of(Net(gain=ring))


SOURCE = """
from torch import nn
from helper_of_net import gain

class Net(nn.Module):
    table = {"a", "b", "c"}
    def __init__(self):
        super().__init__()
        self.names, self.cut, self.other = {"x", "y", "z"}, lambda value: value in {"p", "q"}, object()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x) * gain(x)

def make():
    return Net()
"""


def test_the_source_files_of_a_factory_are_in_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def loaded() -> str:
        for name in ("net_of_user", "helper_of_net"):
            sys.modules.pop(name, None)
        return fingerprint_module(load_source("net_of_user:make", input_shapes=[(3,)]))

    Path("net_of_user.py").write_text(SOURCE)
    Path("helper_of_net.py").write_text("def gain(x):\n    return 1\n")
    first = loaded()
    assert loaded() == first
    Path("helper_of_net.py").write_text("def gain(x):\n    return 2.0\n")
    assert loaded() != first, "a helper's code"
    Path("helper_of_net.py").write_text("def gain(x):\n    return 1\n")
    assert loaded() == first
    Path("net_of_user.py").write_text(SOURCE.replace("* gain", "+ gain"))
    assert loaded() != first


@pytest.mark.slow
def test_a_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "net_of_user.py").write_text(SOURCE)
    (tmp_path / "helper_of_net.py").write_text("def gain(x):\n    return 1\n")
    code = (
        "import sys; from stn_infer.api.fingerprint import fingerprint; from stn_infer.api.source import resolve\n"
        "print(*(fingerprint(resolve(name, input_shapes=[(3,)])) for name in ['net_of_user:make']))\n"
        "print(*(fingerprint(resolve(name)) for name in ['st-cnn-affine-rts', 'st-fcn-tps', 'program.pt2']))"
    )
    program = torch.export.export(Net(), (torch.ones(2, 1, 4, 5),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "program.pt2")
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] and len(set(found[0].split())) == 4
