"""Sources with the inputs that a user declares, and example inputs from a file or from objects."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stn_infer.arrays import Array
from stn_infer.errors import InputError, UsageError, one_line
from stn_infer.sources.inputs import GivenInput, parameter_names, takes_any_number, with_examples, with_types
from stn_infer.sources.load import LoadedModel, load_source
from stn_infer.sources.reference import WeightsLike

if TYPE_CHECKING:
    from torch import nn

_SUFFIXES = ".npz, .npy, .pt or .pth"


def load_with_inputs(
    source: str | Path | nn.Module | LoadedModel,
    *,
    weights: WeightsLike | None = None,
    input_shapes: Sequence[int] | Sequence[Sequence[int]] | None = None,
    inputs: Sequence[str] | None = None,
    example_inputs: object = None,
    allow_code: bool = False,
) -> LoadedModel:
    """Load a source whose inputs the user declares by shape, by name and type, or by examples.

    Args:
        source: as for :func:`~stn_infer.sources.load.load_source`, or a loaded model.
        weights: a checkpoint.
        input_shapes: one shape per input, without the batch; or the only input's.
        inputs: one declaration NAME:TYPE:SHAPE per input.
        example_inputs: as for :func:`example_arrays`.
        allow_code: as for :func:`~stn_infer.sources.load.load_source`.

    Raises:
        SourceError, WeightsError: the model cannot be loaded.
        UsageError: the declarations do not fit the model or are malformed, or there are several kinds of them.
        InputError: a file of examples cannot be read.
    """
    given = [input_shapes is not None, bool(inputs), example_inputs is not None]
    if sum(given) > 1:
        raise UsageError(
            "input shapes (--input-shape), declarations (--input) and example inputs (--inputs) all define the inputs; "
            "give only one of them"
        )
    if isinstance(inputs, str):
        inputs = [inputs]
    declared = [GivenInput.parse(text) for text in inputs or ()]
    arrays = None if example_inputs is None else example_arrays(example_inputs)
    shapes = None if input_shapes is None else _shapes(input_shapes)
    if declared:
        shapes = tuple(each.shape for each in declared)
    elif arrays is not None:
        values = arrays.values() if isinstance(arrays, Mapping) else arrays
        shapes = tuple(tuple(array.shape[1:]) for array in values)
    if isinstance(source, LoadedModel):
        if weights is not None:
            raise UsageError(f"{source.name} is already loaded; pass the weights to load_source")
        loaded = source if shapes is None else replace(source, input_shapes=shapes)
    else:
        loaded = load_source(source, weights=weights, input_shapes=shapes, allow_code=allow_code)
    by_name = bool(declared) or isinstance(arrays, Mapping)
    any_number = takes_any_number(loaded.module) and not by_name
    names = parameter_names(loaded.module, len(shapes or ()) if any_number else 1)
    if declared:
        return with_types(loaded, declared, names)
    return loaded if arrays is None else with_examples(loaded, arrays, names)


def _shapes(given: object) -> tuple[tuple[int, ...], ...]:
    """Shapes as a user gives them; one shape alone is the only input's."""
    if isinstance(given, Sequence) and given and all(isinstance(size, int) for size in given):
        given = [given]
    found: list[tuple[int, ...]] = []
    for shape in given if isinstance(given, Sequence) and not isinstance(given, str) else [None]:
        sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
        if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
            raise UsageError(
                "input_shapes has one shape per input, integers of at least 1 without the batch, such as "
                f"[(3, 32, 32)]; got {given!r}"
            )
        found.append(sizes)
    return tuple(found)


def example_arrays(given: object) -> dict[str, Array] | tuple[Array, ...]:
    """Example inputs [N, ...]: by name from a mapping or an ``.npz`` file, else in order.

    Args:
        given: a tensor or an array; a list, a tuple or a mapping of them; or the path of a file, see
            :func:`load_examples`.

    Raises:
        UsageError: it is something else.
        InputError: a file cannot be read, or holds something else.
    """
    if isinstance(given, (str, Path)):
        return load_examples(given)
    if isinstance(given, Mapping):
        return {str(name): _array(value, f"the example for {name!r}") for name, value in given.items()}
    if isinstance(given, (list, tuple)) and given:
        return tuple(_array(value, f"example {index}") for index, value in enumerate(given))
    return (_array(given, "example_inputs"),)


def _array(value: object, what: str) -> Array:
    """A tensor or an array as an array; half precision becomes float32."""
    torch = sys.modules.get("torch")
    if isinstance(value, np.ndarray):
        return value
    if torch is None or not isinstance(value, torch.Tensor):
        expected = "a tensor or an array [N, ...], a tuple or a dict of them, or a file"
        raise UsageError(f"{what}: expected {expected}, got {type(value).__name__}")
    dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
    array: Array = (dense.float() if dense.is_floating_point() else dense).cpu().numpy()
    return array


def load_examples(path: str | Path) -> dict[str, Array] | tuple[Array, ...]:
    """Load example inputs: by name from an ``.npz`` file or a dictionary of tensors, else in order.

    Args:
        path: an ``.npz`` file, an ``.npy`` file (one input), or tensors saved by ``torch.save``: one, a list, a tuple
            or a dictionary. No code in it is run.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".npy", ".pt", ".pth"):
        raise InputError(f"{path}: expected example inputs in a file {_SUFFIXES}")
    try:
        if suffix == ".npy":
            return (np.load(path, mmap_mode="r", allow_pickle=False),)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return {name: np.asarray(stored[name]) for name in stored.files}
        import torch

        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected example inputs in a file {_SUFFIXES}") from None
    except (Exception, MemoryError) as error:  # numpy, zipfile and pickle raise many types for a damaged file
        raise InputError(f"{path} has no readable arrays: {one_line(error)}") from None
    return _arrays(path, loaded)


def _arrays(path: Path, loaded: Any) -> dict[str, Array] | tuple[Array, ...]:
    import torch

    if isinstance(loaded, torch.Tensor):
        loaded = (loaded,)
    values = list(loaded.values()) if isinstance(loaded, Mapping) else loaded
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, torch.Tensor) for value in values):
        raise InputError(f"{path}: expected a tensor, or a list, a tuple or a dictionary of tensors")
    if not values:
        raise InputError(f"{path} holds no tensor")
    arrays = [_array(value, str(path)) for value in values]
    if isinstance(loaded, Mapping):
        return dict(zip(map(str, loaded), arrays, strict=True))
    return tuple(arrays)
