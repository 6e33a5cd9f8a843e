"""Photographs from scikit-image's wheel: present, in color, and large enough for every size that is composed."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Generator

from export.datasets.photographs import FILES, photographs, piece
from stn_infer.errors import MissingDependencyError


def test_the_wheel_has_all_of_them() -> None:
    found = photographs()
    assert len(found) == len(FILES)
    assert all(picture.ndim == 3 and picture.shape[2] == 3 and min(picture.shape[:2]) >= 300 for picture in found)


def test_pieces_are_pixels_of_a_photograph() -> None:
    generator = Generator().manual_seed(0)
    pieces = [piece(48, generator) for _ in range(20)]
    assert all(found.shape == (3, 48, 48) and found.dtype == torch.float32 for found in pieces)
    assert len({float(found.mean()) for found in pieces}) == 20
    assert all(float(found.std()) > 0 for found in pieces)


def test_without_scikit_image_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    photographs.cache_clear()
    with pytest.raises(MissingDependencyError, match="part of scikit-image; pip install"):
        photographs()
