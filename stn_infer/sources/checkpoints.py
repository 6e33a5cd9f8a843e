"""Load checkpoints: safetensors, or ``.pt``/``.pth`` files that contain only tensors.

A ``.pt`` file is a pickle, and unpickling can run any code. It is always read with ``weights_only=True``. Numpy
scalars, which training loops store beside the tensors, are allowed. The usual wrappers are removed: a dictionary with
the tensors under ``state_dict`` or ``model``, the prefixes ``module.`` (DataParallel) and ``_orig_mod.``
(torch.compile), and any prefix that all keys share.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stn_infer.errors import WeightsError, one_line
from stn_infer.sources.identify import WORDS, identify_file, is_safetensors
from stn_infer.version import respelled

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which training loops store the tensors, in the order in which they are tried."""

_SHOWN = 3  # keys named in an error
_MOST_RATIO = 20  # of an archive's contents to its size
_LONGEST_INDEX = 8 << 20  # bytes of names, types and shapes: about 100,000 tensors; reading them takes seconds
_NESTED = 8


def load_weights(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a checkpoint by name, on the CPU, without ``module.`` and ``_orig_mod.``.

    Args:
        path: a ``.safetensors`` file, or a file written by ``torch.save`` that contains a dictionary of tensors, at top
            level or under one of :data:`WRAPPERS`.

    Raises:
        WeightsError: the file is missing, truncated, not a checkpoint, or contains objects other than tensors.
    """
    return _without_prefixes(_read(path))


def apply_weights(module: nn.Module, path: Path) -> None:
    """Load a checkpoint into a module; it must contain every parameter and persistent buffer, and nothing else.

    Values are cast to the module's types. BatchNorm's ``num_batches_tracked``, which old checkpoints lack, is optional.

    Raises:
        WeightsError: as :func:`load_weights`; or keys or shapes do not fit; or the weights contain NaN or infinity.
    """
    path = Path(path)
    expected = module.state_dict()
    tensors = _fit_prefix(_respell(_read(path), expected), expected)
    missing = [key for key in expected if key not in tensors and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in tensors if key not in expected]
    if missing or unexpected:
        raise WeightsError(
            f"{path}: the keys do not fit {type(module).__name__}: {len(missing)} missing{_some(missing)}, "
            f"{len(unexpected)} unexpected{_some(unexpected)}; give a checkpoint of this network"
        )
    misfits = [
        f"{key} is {_shape(tensor)}, expected {_shape(expected[key])}"
        for key, tensor in tensors.items()
        if not is_lazy(expected[key]) and tensor.shape != expected[key].shape
    ]
    if misfits:
        raise WeightsError(
            f"{path}: {len(misfits)} of {len(tensors)} tensors have another shape: {'; '.join(misfits[:_SHOWN])}"
            f"{'; …' if len(misfits) > _SHOWN else ''}; build the network with the options it was trained with"
        )
    for key, tensor in tensors.items():
        if tensor.is_complex() and not expected[key].is_complex():
            raise WeightsError(f"{path}: {key} contains complex numbers, expected real numbers")
    try:
        module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # raised by a module's own loading hook
        raise WeightsError(f"{path}: {type(module).__name__} cannot load it: {one_line(error)}") from None
    check_finite(module, str(path))


def check_finite(module: nn.Module, origin: str) -> None:
    """Check that a module's parameters and buffers are finite.

    Infinity in a buffer is allowed, because attention masks contain it on purpose.

    Args:
        module: the module to check.
        origin: the file or factory that the error names.

    Raises:
        WeightsError: a parameter contains NaN or infinity, or a buffer contains NaN; the message names the tensor.
    """
    named: Iterable[tuple[str, Tensor, bool]] = (
        *((name, parameter, False) for name, parameter in module.named_parameters()),
        *((name, buffer, True) for name, buffer in module.named_buffers()),
    )
    for name, tensor, infinity_allowed in named:
        if is_lazy(tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        bad = tensor.isnan() if infinity_allowed else ~tensor.isfinite()
        if count := int(bad.sum()):
            what = "NaN" if bool(tensor.isnan().any()) else "infinity"
            raise WeightsError(
                f"{origin}: {name} contains {what} ({count} of {tensor.numel()} values); "
                "if the training diverged, use an earlier checkpoint"
            )


def _respell(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of checkpoints of earlier versions to the current networks' names."""
    if any(respelled(key) != key for key in expected):
        return tensors
    return {respelled(key): tensor for key, tensor in tensors.items()}


def _read(path: Path) -> dict[str, Tensor]:
    path = Path(path)
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path}: expected a checkpoint (.safetensors, .pt or .pth), but the path {state}")
    found = identify_file(path)
    if found.kind in WORDS or found.kind == "other":
        what = f"is {WORDS[found.kind]}" if found.kind in WORDS else found.problem
        raise WeightsError(f"{path}: expected a checkpoint (.safetensors, .pt or .pth), but it {what}")
    try:
        with path.open("rb") as file:
            head = file.read(9)
        # a damaged file is identified by its suffix
        safe = is_safetensors(head) or (path.suffix == ".safetensors" and head[:2] not in (b"PK", b"\x80\x02"))
        return _read_safetensors(path) if safe else _unwrap(path, _read_torch(path))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if _LONGEST_INDEX < header < path.stat().st_size:
        raise _too_many(path, header)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(
            f"{path}: not a complete safetensors file ({one_line(error)}): it is truncated or has another format; "
            "copy it again"
        ) from None


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to far more than its size; ``torch.save`` compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
            index = sum(info.file_size for info in archive.infolist() if info.filename.endswith(".pkl"))
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # an older format, or torch reports the damage
        return
    if size > _MOST_RATIO * path.stat().st_size:
        raise WeightsError(
            f"{path}: its {path.stat().st_size:,} bytes unpack to {size:,}; "
            "save it again with torch.save(model.state_dict(), ...)"
        )
    if index > _LONGEST_INDEX:
        raise _too_many(path, index)


def _too_many(path: Path, size: int) -> WeightsError:
    return WeightsError(
        f"{path}: the list of its tensors has {size:,} bytes, expected at most {_LONGEST_INDEX:,}; save the weights "
        "of the network alone"
    )


def _read_torch(path: Path) -> Any:
    _check_archive(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
            # torch warns about archives before it raises an error; the error is enough
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch names the refused object ("Unsupported global: GLOBAL models.Net was not ...") in a long text
        found = re.search(r"GLOBAL (\S+)", str(error))
        objects = f" ({found[1]})" if found else ""
        raise WeightsError(
            f"{path}: expected only tensors, found other pickled objects{objects} or a damaged pickle; "
            "save it again with torch.save(model.state_dict(), ...)"
        ) from None
    except OSError:
        raise
    except Exception as error:  # torch reports damage as RuntimeError, EOFError, KeyError and others
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path}: expected a checkpoint, found a TorchScript archive; "
                "save its weights with torch.save(model.state_dict(), ...)"
            ) from None
        detail = one_line(error, 120)
        raise WeightsError(
            f"{path}: not a complete checkpoint{f' ({detail})' if detail else ''}: it is truncated or has another "
            "format; copy it again"
        ) from None


def _numpy_scalars() -> list[Any]:
    """The globals that unpickle scalars such as ``np.float64(0.97)``, by numpy 1's and 2's names; not arrays."""
    import numpy as np

    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    scalar = np.float64(0).__reduce__()[0]
    return [np.dtype, *kinds, (scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar")]


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """Find the dictionary of tensors in the result of ``torch.load``."""
    for _ in range(_NESTED):  # bounded, because a pickle may contain itself
        if not isinstance(content, Mapping):
            break
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path}: expected a dictionary of tensors, found {_article(content)}; "
            "save it with torch.save(model.state_dict(), ...)"
        )
    for key, value in content.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise WeightsError(
                f"{path}: expected only tensors, found {_article(value)} under {key!r}; put the tensors "
                f"under one of {', '.join(WRAPPERS)}, or save model.state_dict() alone"
            )
    if not content:
        raise WeightsError(f"{path}: the checkpoint contains no tensors")
    return dict(content)


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that DataParallel (``module.``, on all keys) and torch.compile (anywhere) add."""
    plain = {key.replace("_orig_mod.", ""): tensor for key, tensor in tensors.items()}
    while plain and all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): tensor for key, tensor in plain.items()}
    return plain


def _fit_prefix(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The best match of the keys: unchanged, without the usual prefixes, or without a prefix that all keys share.

    The unchanged keys are tried first, because a network may have a submodule named ``module``.
    """
    plain = _without_prefixes(tensors)
    candidates = [tensors, plain]
    first = next(iter(plain), "")
    for at, character in enumerate(first):  # "net.", "net.body.", ... of Lightning's model.net.body.weight
        prefix = first[: at + 1]
        if character == "." and all(key.startswith(prefix) for key in plain):
            candidates.append({key.removeprefix(prefix): tensor for key, tensor in plain.items()})
    return max(candidates, key=lambda candidate: sum(key in expected for key in candidate))


def _some(keys: list[str]) -> str:
    if not keys:
        return ""
    return f" ({', '.join(keys[:_SHOWN])}{', …' if len(keys) > _SHOWN else ''})"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
