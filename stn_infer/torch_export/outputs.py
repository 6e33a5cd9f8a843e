"""The tensors among what a model returns, and their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from stn_infer.errors import ModelError

if TYPE_CHECKING:
    import torch


def output_tensors(returned: Any) -> list[torch.Tensor]:
    """The tensors that a model returned, in order; None is skipped, containers and dataclasses are opened.

    Raises:
        ModelError: it returned something else, or no tensor.
    """
    return [tensor for _, tensor in _leaves(returned)]


def output_names(returned: Any) -> list[str]:
    """One name per tensor of :func:`output_tensors`.

    A tensor in a dictionary, a dataclass or a named tuple is named by its key or field, joined with dots if they are
    nested, such as ``aux.logits``; a level with a single tensor adds nothing. Tensors of a tuple or a list are
    ``output_0``, ``output_1``, ...; a single one is ``output``. Names may repeat.

    Raises:
        ModelError: as :func:`output_tensors`.
    """
    leaves = _leaves(returned)
    numbered = ["output"] if len(leaves) == 1 else [f"output_{index}" for index in range(len(leaves))]
    if isinstance(returned, (list, tuple)) and not hasattr(returned, "_fields"):
        return numbered
    names = []
    for (path, _), number in zip(leaves, numbered, strict=True):
        # a level counts if another tensor shares what comes before it
        kept = [
            part
            for depth, part in enumerate(path)
            if depth == 0 or sum(other[:depth] == path[:depth] for other, _ in leaves) > 1
        ]
        names.append(".".join(kept) or number)
    return names


def unique_names(names: Iterable[str], taken: Iterable[str]) -> list[str]:
    """``names``, with ``_out`` after those that an input or an earlier output has."""
    used, found = set(taken), []
    for name in names:
        while name in used:
            name += "_out"
        used.add(name)
        found.append(name)
    return found


def _leaves(returned: Any) -> list[tuple[tuple[str, ...], torch.Tensor]]:
    import torch
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_flatten_with_path(returned)[0]
    unknown = {type(leaf) for _, leaf in leaves if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)}
    if unknown:
        for kind in unknown:
            torch.export.register_dataclass(kind)
        return _leaves(returned)
    tensors = [(tuple(_parts(path)), leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    strange = [type(leaf).__name__ for _, leaf in leaves if leaf is not None and not isinstance(leaf, torch.Tensor)]
    if strange or not tensors:
        raise ModelError(
            f"returns {', '.join(sorted(set(strange))) or 'nothing'}; expected tensors, alone or in tuples, lists, "
            "dictionaries, named tuples or dataclasses"
        )
    return tensors


def _parts(path: Iterable[Any]) -> Iterable[str]:
    for entry in path:
        yield str(next(getattr(entry, key) for key in ("key", "name", "idx") if hasattr(entry, key)))
