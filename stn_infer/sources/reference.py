"""How a user names weights: ``FILE``, or ``FILE#KEY`` for a part of it; and whether tensors may be left over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from stn_infer.sources.hub import is_remote

_IGNORE_EXTRA = "?ignore-extra"


@dataclass(frozen=True)
class Weights:
    """A checkpoint, or a part of one.

    Attributes:
        file: the file, or ``hf://org/repo/file`` on the Hugging Face Hub.
        key: the part to take, such as ``state_dict_ema`` or ``ema.module``; "": the one that fits the network, averaged
            weights (EMA) first.
        ignore_extra: whether the part may contain tensors that the network lacks, such as heads for training.
    """

    file: str | Path
    key: str = ""
    ignore_extra: bool = False

    @classmethod
    def of(cls, weights: WeightsLike) -> Weights:
        """What a user gave, a text being ``FILE``, ``FILE#KEY``, or either followed by ``?ignore-extra``.

        A file whose own name contains ``#`` is found too.
        """
        if isinstance(weights, Weights):
            return weights
        text = str(weights)
        if os.path.lexists(text):
            return cls(text)
        ignore_extra = text.endswith(_IGNORE_EXTRA)
        text = text.removesuffix(_IGNORE_EXTRA)
        ends = [at for at, character in enumerate(text) if character == "#" and at]
        if not ends or os.path.lexists(text):
            return cls(text, ignore_extra=ignore_extra)
        end = next((at for at in ends if os.path.lexists(text[:at])), ends[0])
        return cls(text[:end], text[end + 1 :], ignore_extra)

    def __str__(self) -> str:
        """The text that :meth:`of` reads."""
        key = f"#{self.key}" if self.key else ""
        return f"{self.file}{key}{_IGNORE_EXTRA if self.ignore_extra else ''}"

    def below(self, folder: Path) -> Weights:
        """These weights, as named in a file in ``folder``."""
        return self if is_remote(self.file) else Weights(folder / self.file, self.key, self.ignore_extra)


WeightsLike: TypeAlias = str | Path | Weights
