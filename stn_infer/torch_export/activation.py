"""Whether a PyTorch module itself ends in a softmax or a sigmoid, seen while it runs."""

from __future__ import annotations

from typing import Any

from stn_infer.activation import Scores

_SIGMOIDS = ("sigmoid", "special_expit", "hardsigmoid")
_SOFTMAXES = ("softmax", "_softmax", "special_softmax")
_LOGARITHMS = ("log_softmax", "_log_softmax", "special_log_softmax")
# What hands values on as they are.
_KEEPS = (
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "squeeze", "unsqueeze", "alias", "detach"),
    *("clone", "contiguous", "to", "_to_copy", "dropout", "native_dropout"),
)


def watch_activations() -> Any:
    """A context manager; its ``scores(tensor)`` is what the scores [N, classes] are that a module returned inside.

    None: they were not computed by a softmax, a log-softmax or a sigmoid.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Follows the results of activations through operators that hand them on."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self._found: dict[int, tuple[Any, Scores]] = {}  # by identity; the tensor is kept so that it stays unique

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            scores = self._scores_of(func.overloadpacket.__name__, args)
            if scores is not None:
                self._found[id(result)] = result, scores
            return result

        def _scores_of(self, name: str, args: Any) -> Scores | None:
            if name in _SIGMOIDS:
                return Scores("sigmoid", applied=True)
            if name in _SOFTMAXES or name in _LOGARITHMS:
                shape, dim = args[0].shape, args[1]
                dim %= max(1, len(shape))
                over_classes = dim > 0 and shape[dim] * shape[0] == args[0].numel()
                return Scores("softmax", applied=name in _SOFTMAXES) if over_classes else None
            known = self.scores(args[0]) if args else None
            if name == "log" and known == Scores("softmax", applied=True):
                return Scores()
            return known if name in _KEEPS else None

        def scores(self, tensor: Any) -> Scores | None:
            found = self._found.get(id(tensor))
            return None if found is None else found[1]

    return Watch()
