"""Finding a known part in the state dict of a larger model, and loading it with specific error messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stn_infer.errors import UsageError, WeightsError


@dataclass(frozen=True)
class Part:
    """The tensors under one key prefix.

    Attributes:
        what: the part's name in messages.
        prefix: the key prefix in the whole state dict, including its dot.
        tensors: by name without the prefix, float32 or float64.
    """

    what: str
    prefix: str
    tensors: Mapping[str, Tensor]

    def take(self, name: str, axes: int) -> Tensor:
        """The tensor called ``name``.

        Raises:
            WeightsError: it is missing, or does not have ``axes`` axes.
        """
        tensor = self.tensors.get(name)
        if tensor is None or tensor.dim() != axes:
            state = "is missing" if tensor is None else f"has shape {list(tensor.shape)}, expected {axes} axes"
            raise WeightsError(
                f"{self.prefix}{name} of the {self.what} {state}; give a checkpoint of the published network"
            )
        return tensor

    def load(self, module: nn.Module) -> None:
        """Load the tensors of ``module``; other tensors are ignored.

        Raises:
            WeightsError: a tensor is missing or has another shape.
        """
        own = module.state_dict()
        counters = [name for name in own if name.endswith("num_batches_tracked") and name not in self.tensors]
        for name in own:
            if name in counters:  # old checkpoints do not have it
                continue
            found = self.take(name, own[name].dim())
            if found.shape != own[name].shape:
                raise WeightsError(
                    f"{self.prefix}{name} of the {self.what} has shape {list(found.shape)}, "
                    f"expected {list(own[name].shape)}; the network is not the published one"
                )
        module.load_state_dict({name: self.tensors[name] for name in own if name not in counters}, strict=False)


def find_part(state_dict: Mapping[str, Tensor], anchor: str, what: str, prefix: str | None = None) -> Part:
    """The part of a state dict that contains the tensor ``anchor``.

    Args:
        state_dict: of the part alone or of a larger model.
        anchor: the name of a tensor that only this part has.
        what: the part's name in messages.
        prefix: the key prefix of the part, for a model that contains several.

    Raises:
        WeightsError: there is no such part, or more than one.
    """
    prefixes = sorted(key.removesuffix(anchor) for key in state_dict if key == anchor or key.endswith("." + anchor))
    if prefix is not None:
        prefix = f"{prefix.rstrip('.')}." if prefix.rstrip(".") else ""
        prefixes = [found for found in prefixes if found.startswith(prefix)]
    if not prefixes:
        below = f" below {prefix!r}" if prefix else ""
        some = ", ".join(list(state_dict)[:3])
        raise WeightsError(
            f"the checkpoint contains no {what}: no {anchor!r}{below} among {len(state_dict)} tensors ({some}, …)"
        )
    if len(prefixes) > 1:
        raise WeightsError(
            f"the checkpoint contains more than one {what}, at {', '.join(map(repr, prefixes))}; select one with prefix"
        )
    return part_below(state_dict, prefixes[0], what)


def part_below(state_dict: Mapping[str, Tensor], prefix: str, what: str) -> Part:
    """All tensors whose names begin with ``prefix``, which ends in a dot or is empty."""
    tensors = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    return Part(what, prefix, {key: _full(value) for key, value in tensors.items()})


def image_size(x: Tensor, y: Tensor, name: str) -> tuple[int, int]:
    """(H, W) of the image whose pixels, row-major, have the coordinates ``x`` [P] and ``y`` [P].

    Raises:
        WeightsError: the coordinates are not those of an image's pixels.
    """
    if not bool(x.isfinite().all() & y.isfinite().all()):
        raise WeightsError(f"{name} contains NaN or infinity; use an undamaged checkpoint")
    width, height = (int(torch.unique(values).numel()) for values in (x, y))
    if width * height != x.numel() or not bool((x.reshape(height, width) == x[:width]).all()):
        raise WeightsError(
            f"{name} has {x.numel()} rows for {width} x and {height} y coordinates; expected one row per pixel"
        )
    return height, width


def pair_of_sizes(value: object, name: str) -> tuple[int, int]:
    """(H, W) from an argument or a recipe.

    Raises:
        UsageError: ``value`` is not two positive integers.
    """
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise UsageError(f"{name} is height and width, such as [32, 64], not {value!r}")
    return sizes[0], sizes[1]


def _full(tensor: Tensor) -> Tensor:
    """``tensor`` with half precision converted to float32; other tensors unchanged."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
