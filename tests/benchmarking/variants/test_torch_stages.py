"""Where PyTorch's time goes: which operators compute a grid, and that slow ones show in their stage."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.benchmarking.variants import torch_stages
from stn_infer.benchmarking.variants.torch_stages import grid_operators, inspect_module, trace
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import Affine, ThinPlateSpline


class Written(nn.Module):
    """A transformer as people write it, whose parameters go through ``expand`` before they are theta."""

    def __init__(self, expand: Callable[[Tensor], Tensor], parameters: int = 6) -> None:
        super().__init__()
        self.localization = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, parameters))
        self.expand = expand
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.expand(self.localization(x))
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False).flatten(1))


def grid_of(module: nn.Module, *inputs: Tensor) -> list[str] | None:
    with torch.inference_mode():
        operators = trace(lambda: module(*inputs), module, list(inputs))
    found = grid_operators(operators)
    return None if found is None else [operators[index].name.removeprefix("aten.") for index in sorted(found)]


IMAGE = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_grid_begins_after_the_last_layer_with_weights() -> None:
    module = Written(lambda it: it.view(-1, 2, 3))
    assert grid_of(module, IMAGE) == ["view", "affine_grid_generator"]


def test_a_layer_of_the_projects_own_has_its_product_with_the_basis_in_the_grid() -> None:
    localization = nn.Sequential(nn.Flatten(), nn.Linear(64, 32))
    module = SpatialTransformer(localization, ThinPlateSpline((4, 4)), (8, 8), identity_init=False)
    found = grid_of(module, IMAGE)
    assert found is not None and "matmul" in found
    assert found.count("linear") <= 1  # the map from parameters to theta; the localization network's is before it


def test_a_narrower_tensor_after_the_layer_is_where_the_grid_begins() -> None:
    module = Written(lambda it: it.mean(2).view(-1, 2, 3), parameters=6)
    module.localization[-1] = nn.Linear(32, 60)
    module.localization.append(nn.Unflatten(1, (6, 10)))
    assert grid_of(module, IMAGE) == ["view", "affine_grid_generator"]


def test_two_heads_and_what_only_a_shape_is_read_of() -> None:
    class Heads(Written):
        def __init__(self) -> None:
            super().__init__(lambda it: it)
            self.scale, self.shift = nn.Linear(6, 1), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            code = self.localization(x)
            zero = torch.zeros_like(x[:, 0, :1, :1])
            scale = self.scale(code)[:, :, None]
            theta = torch.cat([torch.cat([scale, zero], 2), torch.cat([zero, scale], 2)], 1)
            theta = torch.cat([theta, self.shift(code)[:, :, None]], 2)
            return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)

    found = grid_of(Heads(), IMAGE)
    assert found is not None and found.count("cat") == 4 and "linear" not in found


def test_what_is_written_in_place_is_followed() -> None:
    def expand(values: Tensor) -> Tensor:
        theta = torch.zeros(len(values), 2, 3)
        theta[:, 0, 0] = values[:, 0]
        theta[:, 1, 1] = values[:, 0]
        theta[:, :, 2] = values[:, 1:3]
        return theta

    found = grid_of(Written(expand, parameters=3), IMAGE)
    assert found is not None and found.count("copy_") == 3 and "linear" not in found


def test_theta_as_an_input_and_a_grid_that_never_changes() -> None:
    class Given(nn.Module):
        def forward(self, x: Tensor, theta: Tensor) -> Tensor:
            return F.grid_sample(x, F.affine_grid(theta * 0.5, list(x.shape), align_corners=False), align_corners=False)

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("theta", torch.eye(2, 3)[None])

        def forward(self, x: Tensor) -> Tensor:
            theta = self.theta.expand(len(x), 2, 3)
            return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)

    assert grid_of(Given(), IMAGE, torch.rand(4, 2, 3)) == ["affine_grid_generator"]
    assert grid_of(Constant(), IMAGE) == ["expand", "affine_grid_generator"]


def test_what_cannot_be_told_is_not_told() -> None:
    class Field(nn.Module):
        """The grid is the image itself: nothing narrower lies before the sampler."""

        def forward(self, x: Tensor) -> Tensor:
            grid = torch.cat([x, x * x], 1).permute(0, 2, 3, 1)
            return F.grid_sample(x, grid, align_corners=False)

    module = Field()
    assert grid_of(module, IMAGE) is None
    found = inspect_module(lambda: module(IMAGE), module, [IMAGE])
    assert found.stages is not None and set(found.stages) == {"sampling", "rest"}
    assert "not clear from the operators" in found.left_out["the grid's share"]
    plain = nn.Flatten()
    assert inspect_module(lambda: plain(IMAGE), plain, [IMAGE]).left_out == {"stages": "it has no sampler"}
    turns = iter(range(1000))
    restless = lambda: module(IMAGE) if next(turns) % 2 else module(IMAGE).abs()  # noqa: E731
    assert "differ" in inspect_module(restless, module, [IMAGE]).left_out["stages"]


def test_time_goes_to_the_stage_it_was_spent_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Written(lambda it: it.view(-1, 2, 3))
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(torch_stages, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    slow = {"affine_grid_generator": 0.002, "grid_sampler": 0.003}
    from torch.utils._python_dispatch import TorchDispatchMode

    class Slow(TorchDispatchMode):
        """Below the watching mode: each operator moves the clock by what it takes."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = str(func).removeprefix("aten.").partition(".")[0]
            clock.now += slow.get(name, 0.0005 if name == "linear" else 0.0)
            return func(*args, **(kwargs or {}))

    with torch.inference_mode(), Slow():
        found = inspect_module(lambda: module(IMAGE), module, [IMAGE])
    assert found.stages == pytest.approx({"grid": 2.0, "sampling": 3.0, "rest": 1.5})
    assert [sampler.op for sampler in found.samplers] == ["aten.grid_sampler"] and not found.left_out


def test_on_a_gpu_events_surround_each_operator_in_a_queue_that_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self, stream: object) -> None:
            order.append("event")
            self.at = float(len(order))

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

        def query(self) -> bool:
            order.append("asked")
            return dry

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.inference_mode())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("sleep"))
    dry = False
    gpu = SimpleNamespace(type="cuda")
    names, times, filled = torch_stages._timed_pass(lambda: IMAGE.abs().neg(), gpu, 1000)
    assert (names, times, filled) == (["aten.abs", "aten.neg"], [1.0, 1.0], True)
    assert order == ["wait", "sleep", *["event"] * 5, "asked", "wait"]
    operators = trace(lambda: IMAGE.abs().neg(), nn.Identity(), [IMAGE])
    assert torch_stages._times(lambda: IMAGE.abs().neg(), operators, gpu) == [1.0, 1.0]
    dry = True  # the GPU is done before all is launched: times would be those of launching
    assert "queue" in torch_stages._times(lambda: IMAGE.abs().neg(), operators, gpu)


def test_the_compilers_own_code_is_told_from_kernels_that_it_calls() -> None:
    module = Written(lambda it: it.view(-1, 2, 3))
    (flat,) = inspect_module(lambda: module(IMAGE), module, [IMAGE], compiled=True).samplers
    assert flat.op == "generated by the compiler"
    volume = torch.rand(1, 1, 4, 4, 4)
    grid = torch.rand(1, 4, 4, 4, 3)
    run = lambda: F.grid_sample(volume, grid, align_corners=False)  # noqa: E731
    found = inspect_module(run, nn.Identity(), [volume], compiled=True)
    assert found.samplers[0].op.startswith("aten.grid_sampler") and found.stages is None
    assert "fuses" in found.left_out["stages"]


class Custom(nn.Module):
    """A head of its own between the localization network and the sampler."""

    def __init__(self, head: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.localization, self.head = nn.Linear(64, 6), head
        self.wide = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 6))
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
        self.register_buffer("base", torch.stack((xs, ys, torch.ones_like(xs)), -1).view(-1, 3))

    def forward(self, x: Tensor) -> Tensor:
        grid = self.head(self, self.localization(x.flatten(1)))
        return F.grid_sample(x, grid.view(-1, 8, 8, 2), align_corners=False)


def affine(module: nn.Module, theta: Tensor) -> Tensor:
    return F.affine_grid(theta.view(-1, 2, 3), [len(theta), 1, 8, 8], align_corners=False)


def test_a_frozen_networks_layers_are_layers() -> None:
    """A narrow tensor within the localization network is not theta because nothing is trained any more."""
    frozen = Custom(lambda self, values: affine(self, self.wide(values[:, :2])))
    trained = grid_of(frozen, IMAGE)
    assert trained == ["view", "affine_grid_generator", "view"]
    assert grid_of(frozen.requires_grad_(False), IMAGE) == trained
    frozen.register_parameter("elsewhere", nn.Parameter(torch.ones(1)))  # now the frozen layers are none for certain
    assert grid_of(frozen, IMAGE) is None


def test_what_is_written_into_an_out_argument_is_followed() -> None:
    def head(self: nn.Module, theta: Tensor) -> Tensor:
        grid = torch.empty(len(theta), 64, 2)
        torch.matmul(self.base, theta.view(-1, 2, 3).transpose(1, 2), out=grid)
        return grid

    found = grid_of(Custom(head), IMAGE)
    assert found is not None and any("mm" in name or "matmul" in name for name in found) and "linear" not in found


def test_a_tensor_without_storage_is_itself() -> None:
    def head(self: nn.Module, theta: Tensor) -> Tensor:
        sparse = self.base.to_sparse()
        return torch.stack([torch.sparse.mm(sparse, each.T) for each in theta.view(-1, 2, 3)])

    found = grid_of(Custom(head), IMAGE)
    assert found is not None and "linear" not in found and "stack" in found


def test_the_affine_family_too() -> None:
    localization = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    module = SpatialTransformer(localization, Affine(), (8, 8), identity_init=False)
    found = grid_of(module, IMAGE)
    assert found is not None and "matmul" in found
