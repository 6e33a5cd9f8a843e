"""Which part of a checkpoint is a network's: training loops store it beside averaged copies, optimizers and counters.

A checkpoint is a tree of dictionaries and lists. Each dictionary with tensors is a :class:`Part`. Within a part, the
network's names may have a prefix, from a wrapper (``module.``, ``model.``) or because a larger module was saved. A part
and a prefix make a :class:`Candidate`. Candidates with every parameter and buffer of the network are *complete*; of
these, averaged weights (EMA, SWA) are preferred, and then those under names that training loops use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from stn_infer.errors import WeightsError, one_line
from stn_infer.sources.inert_pickle import Inert
from stn_infer.version import respelled

#: Keys under which training loops store the tensors, in the order in which they are preferred.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "weights"),
    *("params", "module", "network", "online_model"),
)  # fmt: skip
_NESTED = 8
_LONGEST_KEY = 200  # characters of a dictionary's name
_ODD = "torch._utils._rebuild_"
_MOST_PREFIXES = 12  # names that are tried as the end of a prefix; a network's own names are not that deep
_SHOWN = 3  # tensors named in a message
_SHOWN_PARTS = 8
_MOST_COMPLETE = 100  # parts that are compared with each other
_TOP = "."  # what ``--weights FILE#KEY`` calls the tensors that are in no dictionary of the checkpoint
_AVERAGED = re.compile(r"(^|[._-])(ema|swa|avg|averaged?|shadow)([._-]|\d|$)", re.IGNORECASE)
_COUNTERS = ("total_ops", "total_params")  # of thop, beside the tensors of each module
_BATCHES = "num_batches_tracked"  # of BatchNorm; no inference needs it, and old checkpoints lack it


@dataclass(frozen=True)
class Part:
    """A dictionary with tensors.

    Attributes:
        name: the keys that lead to it, joined by dots; "": the checkpoint itself.
        tensors: those directly in it, by name.
        others: the functions that would have made what is not a dense tensor, by name, such as sparse tensors.
    """

    name: str
    tensors: Mapping[str, Tensor]
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def averaged(self) -> bool:
        """Whether its name, or a counter of torch.optim.swa_utils.AveragedModel, says that its tensors are averages."""
        return bool(_AVERAGED.search(self.name)) or "n_averaged" in self.tensors


@dataclass(frozen=True)
class Contents:
    """What a checkpoint contains.

    Attributes:
        parts: its dictionaries with tensors.
        lists: names of lists of tensors, which have no names of their own.
        modules: name to class of whole pickled models.
    """

    parts: tuple[Part, ...]
    lists: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A prefix within a part, after which names of the network follow.

    Attributes:
        part: the part.
        prefix: the prefix, which ends in a dot, or "".
        found: the network's name of each tensor found, and its key in the part.
        expected: the network's tensors by name.
    """

    part: Part
    prefix: str
    found: Mapping[str, str]
    expected: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """What ``--weights FILE#KEY`` calls it."""
        return ".".join(filter(None, (self.part.name, self.prefix.removesuffix("."))))

    @property
    def averaged(self) -> bool:
        """Whether its tensors are averages over training steps."""
        return self.part.averaged or bool(_AVERAGED.search(self.prefix))

    @cached_property
    def missing(self) -> list[str]:
        """The network's tensors that it lacks."""
        return [name for name in self.expected if name not in self.found and not name.endswith(_BATCHES)]

    @cached_property
    def fits(self) -> bool:
        """Whether every tensor has the network's shape."""
        return all(
            is_lazy(self.expected[name]) or self.part.tensors[key].shape == self.expected[name].shape
            for name, key in self.found.items()
        )

    def tensors(self) -> dict[str, Tensor]:
        """The network's tensors by its names."""
        return {name: self.part.tensors[key] for name, key in self.found.items()}


@dataclass(frozen=True)
class Choice:
    """The part that was taken.

    Attributes:
        tensors: by the network's names.
        extra: keys beside them, under the same prefix, that are not the network's.
        name: of the part, as ``--weights FILE#KEY`` takes it; "": the whole file, whose key is ``.``.
        averaged: whether they are averages over training steps.
        others: names of what could have been taken instead.
        incomplete: averaged weights that could not be taken, and what they lack; "" if there are none.
        left_out: the number of tensors outside the prefix, which belong to other modules.
    """

    tensors: Mapping[str, Tensor]
    extra: tuple[str, ...] = ()
    name: str = ""
    averaged: bool = False
    others: tuple[str, ...] = ()
    incomplete: str = ""
    left_out: int = 0

    @property
    def described(self) -> str:
        """The name and whether the weights are averages, for a file's metadata."""
        return (self.name or "the whole file") + (" (averaged)" if self.averaged else "")

    @property
    def is_one_of_several(self) -> bool:
        """Whether something else could have been taken, or the weights are averages."""
        return bool(self.others or self.left_out or self.averaged or self.incomplete)

    @property
    def note(self) -> str:
        """What was taken, for the user; "" if there was nothing to choose from."""
        if not (self.others or self.left_out):
            return ""
        what = f"took {'averaged weights (EMA)' if self.averaged else 'weights'} from {self.described_name}"
        if self.others:
            return f"{what}; it also has {_listed(self.others)}, which --weights FILE#KEY takes"
        return f"{what}; other tensors beside them were left out ({self.left_out})"

    @property
    def described_name(self) -> str:
        """The name in quotes."""
        return repr(self.name) if self.name else "the top level"


def contents_of(content: object) -> Contents:
    """What is in a checkpoint, given the result of reading it, however deep: at most eight dictionaries or lists."""
    parts: list[Part] = []
    lists: list[str] = []
    modules: dict[str, str] = {}
    seen = {id(content)}  # a pickle may contain itself
    level: list[tuple[str, object]] = [("", content)]
    for _ in range(_NESTED):
        below: list[tuple[str, object]] = []
        for name, value in level:
            if isinstance(value, Inert):
                if is_module(value):
                    modules[name] = value.kind
                continue
            if isinstance(value, Mapping):
                items = [(key, item) for key, item in value.items() if isinstance(key, str)]
                if tensors := {key: item for key, item in items if isinstance(item, Tensor)}:
                    made = {key: item.kind for key, item in items if isinstance(item, Inert)}
                    parts.append(Part(name, tensors, {key: kind for key, kind in made.items() if _ODD in kind}))
            elif not isinstance(value, (list, tuple)):
                continue
            else:
                items = [(str(index), item) for index, item in enumerate(value)]
                if any(isinstance(item, Tensor) for item in value):
                    lists.append(name)
            for key, item in items:
                inside = isinstance(item, (Mapping, list, tuple, Inert)) and len(key) <= _LONGEST_KEY
                if inside and id(item) not in seen:
                    seen.add(id(item))
                    below.append((f"{name}.{key}" if name else key, item))
        level = below
    return Contents(tuple(parts), tuple(lists), modules)


def is_module(value: Inert) -> bool:
    """Whether a placeholder stands for a ``torch.nn.Module``."""
    return isinstance(value.state, Mapping) and {"_parameters", "_modules"} <= value.state.keys()


def whole_model(contents: Contents) -> str:
    """How to get the weights out of a whole pickled model, for a checkpoint that has one."""
    name, kind = next(iter(contents.modules.items()))
    where = f"under {name!r}" if name else "it"
    steps = "".join(f"[{key!r}]" for key in name.split(".")) if name else ""
    return (
        f"{where} is a whole pickled model ({one_line(kind, 80)}), which only its own code can open; save its weights: "
        f"torch.save(torch.load(FILE, weights_only=False){steps}.state_dict(), 'weights.pt')"
    )


def choose(
    contents: Contents,
    expected: Mapping[str, Tensor],
    network: str,
    key: str = "",
) -> Choice:
    """The part with a network's tensors.

    Args:
        contents: of the checkpoint.
        expected: the network's tensors by name.
        network: its name in messages.
        key: the part that the user wants, ``.`` for the top level; "": averaged weights where they are complete.

    Raises:
        WeightsError: no part is complete, too many are, several are and nothing says which is meant, or none is called
            ``key``.
    """
    parts = contents.parts
    found = [candidate for part in parts for candidate in _candidates(part, expected)]
    beside = [candidate for candidate in found if not candidate.missing][:_MOST_COMPLETE]
    if key:
        named = _under(key, found)
        if not named:
            tensors = {part.name: part for part in parts}
            own = tensors.get(_name_of(key))
            raise WeightsError(_no_key(key, parts) if own is None else _unfit(network, own, expected))
        found = named
    complete = [candidate for candidate in found if not candidate.missing]
    if not complete:
        if contents.modules and not any(len(each.found) > len(each.missing) for each in found):
            raise WeightsError(whole_model(contents))
        raise WeightsError(_incomplete(network, parts, found, expected))
    if len(complete) > _MOST_COMPLETE:
        raise WeightsError(
            f"{len(complete):,} parts of it have all tensors of {network}: "
            f"{_listed([each.name for each in complete])}; choose one with --weights FILE#KEY"
        )
    pool = [candidate for candidate in complete if candidate.fits] or complete
    pool = [candidate for candidate in pool if candidate.averaged] or pool
    ranked = sorted(((_rank(candidate, beside), index) for index, candidate in enumerate(pool)))
    level = [pool[index] for rank, index in ranked if rank == ranked[0][0]]
    taken = level[0]
    if any(not _equal(taken, other) for other in level[1:]):
        raise WeightsError(
            f"{len(level)} parts of it are complete: {_listed([each.name for each in level])}; "
            "choose one with --weights FILE#KEY"
        )
    extra = _extra(taken, beside)
    used = {*taken.found.values(), *extra}
    others = [each.name or _TOP for each in complete if each is not taken]
    outside = [
        each for each in taken.part.tensors if each not in used and not _is_counter(each) and taken.prefix
    ]  # fmt: skip
    return Choice(
        taken.tensors(),
        tuple(extra),
        taken.name,
        taken.averaged,
        () if key else tuple(dict.fromkeys(others)),
        "" if key or taken.averaged else _averages_skipped(found, contents.lists, taken),
        0 if others or key else len(outside),
    )


def best_part(parts: Sequence[Part], key: str = "") -> Part:
    """The part that is most likely the network's, where the network is not known.

    Raises:
        WeightsError: there is none called ``key``, or several are as likely.
    """
    named = [part for part in parts if not key or part.name == _name_of(key)]
    named = named or [part for part in parts if part.name.startswith(f"{key}.")]
    named = named or [inner for part in parts if (inner := _below(part, key)).tensors]
    if not named:
        raise WeightsError(_no_key(key, parts))
    raw = [part for part in named if not part.averaged] or named
    known = [part for part in raw if not _unknown(part.name)]
    if known:
        return min(known, key=lambda part: (_preference(part.name), part.name.count(".")))
    most = max(len(part.tensors) for part in raw)
    largest = [part for part in raw if len(part.tensors) == most]
    if len(largest) > 1:
        raise WeightsError(
            f"{len(largest)} parts of it have {most} tensors each: {_listed([part.name for part in largest])}; "
            "choose one with --weights FILE#KEY"
        )
    return largest[0]


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the prefixes of DataParallel (``module.``, on all keys) and torch.compile (anywhere)."""
    plain = {key.replace("_orig_mod.", ""): tensor for key, tensor in tensors.items() if key != "n_averaged"}
    while plain and all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): tensor for key, tensor in plain.items()}
    return plain


def _below(part: Part, key: str) -> Part:
    """The tensors of a part whose full names begin with a key, named by what follows."""
    full = {f"{part.name}.{name}".removeprefix("."): tensor for name, tensor in part.tensors.items()}
    return Part(
        key, {name.removeprefix(f"{key}."): value for name, value in full.items() if name.startswith(f"{key}.")}
    )


def _candidates(part: Part, expected: Mapping[str, Tensor]) -> Iterator[Candidate]:
    """Every prefix of a part's keys after which a name of the network follows."""
    plain = {name.replace("_orig_mod.", ""): name for name in expected}  # torch.compile's, of inner modules too
    is_current = all(respelled(name) == name for name in expected)
    found: dict[str, dict[str, str]] = {}
    for key in part.tensors:
        cleaned = key.replace("_orig_mod.", "")
        start = 0
        for _ in range(_MOST_PREFIXES):
            rest = cleaned[start:]
            name = plain.get(rest) or plain.get(respelled(rest) if is_current else rest)
            if name is not None:
                found.setdefault(cleaned[:start], {}).setdefault(name, key)
            start = cleaned.find(".", start) + 1
            if start == 0:
                break
    for prefix, names in found.items():
        yield Candidate(part, prefix, names, expected)


def _under(key: str, found: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that a user's key names: those of that name, else those below it."""
    own = [each for each in found if each.name == _name_of(key)]
    return own or [each for each in found if each.name.startswith(f"{key}.")]


def _name_of(key: str) -> str:
    """The name of the part that a user's key names."""
    return "" if key == _TOP else key


def _rank(candidate: Candidate, complete: Sequence[Candidate]) -> tuple[bool, int, tuple[int, ...], int]:
    name = candidate.name
    return bool(_extra(candidate, complete)), _unknown(name), _preference(name), name.count(".")


def _unknown(name: str) -> int:
    """How many keys of a name are not those of a training loop."""
    return sum(bool(key) and key not in WRAPPERS for key in name.split("."))


def _preference(name: str) -> tuple[int, ...]:
    """The places of its keys in :data:`WRAPPERS`; the smallest comes first."""
    return tuple(WRAPPERS.index(key) for key in name.split(".") if key in WRAPPERS)


def _extra(candidate: Candidate, complete: Sequence[Candidate]) -> list[str]:
    """Keys under a candidate's prefix that are neither the network's, nor counters, nor another candidate's."""
    used = set(candidate.found.values())
    inner = [
        other.prefix
        for other in complete
        if other.part is candidate.part and len(other.prefix) > len(candidate.prefix)
        and other.prefix.startswith(candidate.prefix)
    ]  # fmt: skip
    return [
        key
        for key in candidate.part.tensors
        if key not in used
        and key.replace("_orig_mod.", "").startswith(candidate.prefix)
        and not _is_counter(key)
        and not any(key.replace("_orig_mod.", "").startswith(prefix) for prefix in inner)
    ]


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] in (*_COUNTERS, _BATCHES, "n_averaged")


def _equal(one: Candidate, other: Candidate) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _averages_skipped(found: Sequence[Candidate], lists: Sequence[str], taken: Candidate) -> str:
    """Averaged weights that lack something, and what; "" if there are none."""
    used = set(taken.found.values())
    for candidate in found:
        own = candidate.part is taken.part and used.issuperset(candidate.found.values())
        if candidate.averaged and not own and not (candidate.missing and len(candidate.found) < 2):
            reason = (
                f"lack {len(candidate.missing)} of the {len(candidate.expected)} tensors{some(candidate.missing)}"
                if candidate.missing
                else "have other shapes"
            )
            return f"the averaged weights in {candidate.name!r} {reason}"
    for name in lists:
        if _AVERAGED.search(name):
            return f"the averaged weights in {name!r} have no names"
    return ""


def _incomplete(network: str, parts: Sequence[Part], found: Sequence[Candidate], expected: Mapping[str, Tensor]) -> str:
    """Why no part has all the network's tensors, by the one that has most of them."""
    largest = max(parts, key=lambda part: (not _unknown(part.name), len(part.tensors)))
    nearest = max(found, key=lambda each: (len(each.found), not each.averaged), default=None)
    if nearest is None:
        return _unfit(network, largest, expected)
    for key, made_by in nearest.part.others.items():
        if key.startswith(nearest.prefix) and key.removeprefix(nearest.prefix) in nearest.missing:
            kind = "sparse" if "sparse" in made_by else "special"
            return f"{key} is a {kind} tensor, expected a dense one; save it as one (to_dense())"
    bare = [name for name in nearest.missing if name in nearest.part.tensors]
    if bare and len(bare) == len(nearest.missing):
        return (
            f"{len(nearest.found)} of the keys of {network} begin with {nearest.prefix!r} and {len(bare)} do not"
            f"{some(bare)}; rename them in Python and save the file again"
        )
    used = set(nearest.found.values())
    unexpected = [key for key in nearest.part.tensors if key not in used and not _is_counter(key)]
    return _keys_differ(network, nearest.missing, unexpected, nearest.name)


def _unfit(network: str, part: Part, expected: Mapping[str, Tensor]) -> str:
    return _keys_differ(
        network, [name for name in expected if not name.endswith(_BATCHES)], list(part.tensors), part.name
    )


def _keys_differ(network: str, missing: Sequence[str], unexpected: Sequence[str], name: str) -> str:
    where = f" of {name!r}" if name else ""
    return (
        f"the keys{where} do not fit {network}: {len(missing)} missing{some(missing)}, "
        f"{len(unexpected)} unexpected{some(unexpected)}; give a checkpoint of this network"
    )


def _no_key(key: str, parts: Sequence[Part]) -> str:
    names = [part.name for part in sorted(parts, key=lambda part: -len(part.tensors))]
    return f"it has no part {key!r}; the parts with tensors are {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    """Names of parts, as ``--weights FILE#KEY`` takes them."""
    quoted = [f"{_TOP!r} (the top level)" if name in ("", _TOP) else repr(name) for name in names[:_SHOWN_PARTS]]
    shown = ", ".join(quoted)
    return shown if len(names) <= _SHOWN_PARTS else f"{shown} and {len(names) - _SHOWN_PARTS} more"


def some(keys: Sequence[str]) -> str:
    """The first few keys in parentheses, after a space."""
    if not keys:
        return ""
    shown = ", ".join(one_line(key, 120) for key in keys[:_SHOWN])
    return f" ({shown}{', …' if len(keys) > _SHOWN else ''})"
