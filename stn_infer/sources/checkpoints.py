"""Load checkpoints: safetensors, or ``.pt``/``.pth`` files with tensors.

A ``.pt`` file is a pickle, and unpickling can run any code. It is read by :mod:`stn_infer.sources.torch_file`, which
runs none: what is neither a tensor nor plain data becomes an inert placeholder. Which part of a file belongs to a
network is decided in :mod:`stn_infer.sources.parts`.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stn_infer.budget import Budget
from stn_infer.errors import AssumptionWarning, WeightsError, one_line
from stn_infer.sources.hub import local
from stn_infer.sources.identify import identify_file, is_safetensors
from stn_infer.sources.inert_pickle import LONGEST_INDEX, IndexTooLongError, Inert, PickleError, UnsupportedError
from stn_infer.sources.parts import Choice, Contents, best_part, choose, contents_of, plain_names, some, whole_model
from stn_infer.sources.reference import Weights, WeightsLike
from stn_infer.sources.torch_file import read_legacy, read_zip
from stn_infer.sources.unreadable import ADVICE, why_unreadable

_SHOWN = 3  # tensors named in an error
_MOST_RATIO = 20  # of an archive's contents to its size


def load_weights(weights: WeightsLike) -> dict[str, Tensor]:
    """Load the tensors of a checkpoint by name, on the CPU, without ``module.`` and ``_orig_mod.``.

    Args:
        weights: a ``.safetensors`` file, or a file written by ``torch.save``; as a text, ``FILE#KEY`` takes one part of
            it. Without a key, the tensors under the names that training loops use are taken; averaged ones (EMA)
            instead where the file has them for the same names, with an ``AssumptionWarning``.

    Raises:
        WeightsError: the file is missing, truncated, not a checkpoint, contains objects other than tensors, or has
            several parts that are as likely.
    """
    choice = read_weights(Weights.of(weights))
    if choice.note:
        warnings.warn(f"{Weights.of(weights).file}: {choice.note}", AssumptionWarning, stacklevel=2)
    return dict(choice.tensors)


def read_weights(weights: Weights) -> Choice:
    """As :func:`load_weights`, with what was chosen."""
    path, contents = _contents(weights)
    with _about(path):
        part = best_part(contents.parts, weights.key)
        whole = plain_names(part.tensors)
        if weights.key:
            return Choice(whole, name=part.name, averaged=part.averaged)
        # averages have the same names, and so may a part under another name; nothing else is known of the network
        choice = choose(contents, whole, "the other part")
        choice = replace(choice, tensors={**whole, **choice.tensors})
    _tell_incomplete(path, choice)
    return choice


def apply_weights(module: nn.Module, weights: WeightsLike) -> Choice:
    """Load a checkpoint into a module; a part of it must contain every parameter and persistent buffer.

    Values are cast to the module's types. BatchNorm's ``num_batches_tracked``, which old checkpoints lack, is optional.
    Of several such parts, averaged weights (EMA) are taken; if they are not complete, a warning says so.

    Returns:
        Which part was taken.

    Raises:
        WeightsError: as :func:`load_weights`; or keys or shapes do not fit; or the weights contain NaN or infinity; or
            the part contains more than the module, and ``weights.ignore_extra`` is not set.
    """
    weights = Weights.of(weights)
    expected = module.state_dict()
    path, contents = _contents(weights)
    with _about(path):
        choice = choose(contents, expected, type(module).__name__, weights.key)
        if choice.extra and not weights.ignore_extra:
            raise WeightsError(
                f"the keys do not fit {type(module).__name__}: 0 missing, {len(choice.extra)} unexpected"
                f"{some(choice.extra)}; --ignore-extra leaves them out, if they are heads that only training needs"
            )
        _check_shapes(choice.tensors, expected)
        _load(module, choice.tensors)
    check_finite(module, str(path))
    _tell_incomplete(path, choice)
    return choice


def _tell_incomplete(path: Path, choice: Choice) -> None:
    if choice.incomplete:
        warnings.warn(
            f"{path}: {choice.incomplete}; took the weights in {choice.described_name} instead",
            AssumptionWarning,
            stacklevel=3,
        )


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Begin the error messages of a block with the file's name."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def _check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    misfits = [
        f"{key} is {_shape(tensor)}, expected {_shape(expected[key])}"
        for key, tensor in tensors.items()
        if not is_lazy(expected[key]) and tensor.shape != expected[key].shape
    ]
    if misfits:
        raise WeightsError(
            f"{len(misfits)} of {len(tensors)} tensors have another shape: {'; '.join(misfits[:_SHOWN])}"
            f"{'; …' if len(misfits) > _SHOWN else ''}; build the network with the options it was trained with"
        )
    for key, tensor in tensors.items():
        if tensor.is_complex() and not expected[key].is_complex():
            raise WeightsError(f"{key} contains complex numbers, expected real numbers")


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # raised by a module's own loading hook
        raise WeightsError(f"{type(module).__name__} cannot load it: {one_line(error)}") from None


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


def _contents(weights: Weights) -> tuple[Path, Contents]:
    """The contents of a checkpoint, of which at least one part has tensors."""
    path = Path(local(weights.file))
    content = _read(path)
    contents = contents_of(content)
    if contents.parts:
        return path, contents
    if contents.modules:
        raise WeightsError(f"{path}: {whole_model(contents)}")
    why = _without_tensors(content, contents.lists)
    raise WeightsError(f"{path}: {why}; save it with torch.save(model.state_dict(), ...)")


def _without_tensors(content: object, lists: Sequence[str]) -> str:
    if lists:
        return f"its tensors have no names: found a list of them{f' under {lists[0]!r}' if lists[0] else ''}"
    if isinstance(content, Inert):
        return f"expected a dictionary of tensors, found an object of {one_line(content.kind, 80)}"
    if isinstance(content, (Mapping, list, tuple)):
        return "the checkpoint contains no tensors"
    return f"expected a dictionary of tensors, found {_article(content)}"


def _read(path: Path) -> Any:
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path}: expected a checkpoint (.safetensors, .pt or .pth), but the path {state}")
    found = identify_file(path)
    if found.kind in ADVICE or found.kind == "other":
        raise WeightsError(f"{path} {ADVICE.get(found.kind, found.problem)}")
    try:
        with path.open("rb") as file:
            head = file.read(9)
        # a damaged file is identified by its suffix
        safe = is_safetensors(head) or (path.suffix == ".safetensors" and head[:2] not in (b"PK", b"\x80\x02"))
        return _read_safetensors(path) if safe else _read_torch(path, head)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if LONGEST_INDEX < header < path.stat().st_size:
        raise _too_many(path, f"{header:,}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} {why_unreadable(path, one_line(error))}") from None


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to far more than its size; ``torch.save`` compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # the reader reports the damage
        return
    if size > _MOST_RATIO * path.stat().st_size:
        raise WeightsError(
            f"{path}: its {path.stat().st_size:,} bytes unpack to {size:,}; "
            "save it again with torch.save(model.state_dict(), ...)"
        )


def _too_many(path: Path, size: str) -> WeightsError:
    return WeightsError(
        f"{path}: the list of its tensors has {size} bytes, expected at most {LONGEST_INDEX:,}; save the weights "
        "of the network alone"
    )


def _read_torch(path: Path, head: bytes) -> Any:
    budget = Budget.from_environment()
    try:
        if head.startswith(b"PK"):
            _check_archive(path)
            return read_zip(path, budget)
        return read_legacy(path, budget)
    except IndexTooLongError:
        raise _too_many(path, "more") from None
    except MemoryError:
        raise WeightsError(f"{path}: it does not fit into memory") from None
    except UnsupportedError as error:
        raise WeightsError(f"{path}: {one_line(error, 240)}") from None
    except PickleError as error:
        raise WeightsError(f"{path} {why_unreadable(path, one_line(error, 120))}") from None


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
