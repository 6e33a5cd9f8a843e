"""Training that takes a minute: what a cell shows is learned. Needs the digits of ``make mnist``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.experiments import experiments
from export.trainer import Run, perform
from stn_infer.data.mnist import load_mnist
from stn_infer.errors import InputError

FOUND = {experiment.name: experiment for experiment in experiments()}


@pytest.mark.slow
def test_colocalization_finds_translated_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        load_mnist("training")
    except InputError:
        pytest.skip("MNIST is not there: make mnist")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = FOUND["colocalization"].recipe()
        assert recipe.training is not None
        run = Run(replace(recipe, training=replace(recipe.training, epochs=2)), False, 0, validate=True)
        assert perform(run, tmp_path, lambda line: None) <= 5, "percent of boxes with an IoU of at most 0.5"
        figures = run.finished(tmp_path)
        assert figures is not None and figures["iou"] > 80
    finally:
        torch.set_num_threads(threads)
