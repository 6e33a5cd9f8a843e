"""The activation at the end of a PyTorch module, seen while it runs and in its exported graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.activation import Scores
from stn_infer.torch_export.activation import watch_activations

ENDS: dict[str, tuple[Callable[[Tensor], Tensor], Scores | None]] = {
    "softmax": (lambda x: x.softmax(1), Scores("softmax", applied=True)),
    "nn.Softmax": (nn.Softmax(dim=-1), Scores("softmax", applied=True)),
    "log-softmax": (lambda x: F.log_softmax(x, dim=1), Scores("softmax")),
    "log": (lambda x: x.softmax(1).log(), Scores("softmax")),
    "sigmoid": (torch.sigmoid, Scores("sigmoid", applied=True)),
    "then a view": (lambda x: x.reshape(2, 4, 1, 1).softmax(1).flatten(1), Scores("softmax", applied=True)),
    "over a part": (lambda x: x.reshape(2, 2, 2).softmax(2).flatten(1), None),
    "over the batch": (lambda x: x.softmax(0), None),
    "in the middle": (lambda x: x.softmax(1) * 2, None),
    "none": (lambda x: x + 1, None),
}


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", ENDS)
def test_what_a_module_ends_in(name: str, inference: bool) -> None:
    function, expected = ENDS[name]
    with torch.inference_mode(inference), watch_activations() as watch:
        found = function(torch.randn(2, 4))
    assert watch.scores(found) == expected
