"""``torch.autocast`` in a model's code has no effect during export and in the reference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stn_infer.reference.model import Reference
from stn_infer.torch_export.autocast import autocast_off


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    @torch.autocast("cpu", torch.float16)
    def decorated(self, x: Tensor) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            inner = self.linear(x)
            with torch.autocast("cpu", enabled=False):
                inner = inner + 0 * self.linear(x).to(inner.dtype)
        return inner, self.decorated(x)


def test_no_effect_within_and_the_usual_one_after() -> None:
    model, x = Mixed().eval(), torch.randn(2, 8)
    exact = model.linear(x)
    assert [output.dtype for output in model(x)] == [torch.bfloat16, torch.float16]
    with autocast_off() as seen:
        for output in model(x):
            assert torch.equal(output, exact)
    assert seen == ["bfloat16", "float16"]
    assert [output.dtype for output in model(x)] == [torch.bfloat16, torch.float16]
    assert not torch.is_autocast_enabled("cpu")


def test_the_reference_computes_in_float64() -> None:
    model = Mixed().eval()
    x = torch.randn(2, 8)
    (first, second), _ = Reference(model, [(8,)]).run([x.numpy()])
    exact = x.double() @ model.linear.weight.double().T + model.linear.bias.double()
    for output in (first, second):
        assert abs(output - exact.detach().numpy()).max() < 1e-12
