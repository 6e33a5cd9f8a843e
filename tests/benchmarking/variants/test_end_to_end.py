"""The folder that ``run`` is timed on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stn_infer.benchmarking.variants.end_to_end import _Folder
from stn_infer.preprocess.rule import Preprocess


@pytest.mark.parametrize(("jpeg", "suffix"), [("exact", ".png"), ("nvimgcodec", ".jpg")])
def test_files_are_of_the_kind_that_the_rule_is_about(jpeg: Any, suffix: str) -> None:
    variant: Any = SimpleNamespace(shape=(1, 8, 8), preprocess=Preprocess(jpeg=jpeg))
    folder = _Folder(variant, [np.zeros((2, 1, 8, 8), np.float32)])
    try:
        assert [path.suffix for path in folder._files.iterdir()] == [suffix] * folder.items
    finally:
        folder.close()
    assert not folder._files.exists()
