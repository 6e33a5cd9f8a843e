"""Animations of a training run: each frame is one checkpoint's, the inputs are the same, the step is written on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from stn_infer.api.show import show
from stn_infer.errors import UsageError, WeightsError
from stn_infer.pictures import drawing
from stn_infer.pictures.layout import Layout
from stn_infer.pictures.look import Look
from tests.api.test_show import Shift, save

SOURCE: dict[str, Any] = {"model": "tests.api.test_show:Shift", "input_shapes": [(1, 8, 6)]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three snapshots of ``Shift``, which shifts by 0, 0.5 and 1 times the mean."""
    folder = tmp_path / "run"
    folder.mkdir()
    for index, weight in enumerate((0.0, 0.5, 1.0)):
        tensors = {key: torch.full_like(value, weight) for key, value in Shift().state_dict().items()}
        save_file(tensors, folder / f"step-{index * 5}.safetensors", {"step": str(index * 5)})
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.full((1, 1, 8, 6), 0.5, np.float32))
    return tmp_path / "x.npy"


def test_a_frame_per_snapshot_with_its_step(
    run: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, Look]] = []
    draw = drawing.draw

    def recording(looks: Sequence[Look], suffix: str, layout: Layout, caption: str) -> bytes:
        drawn.append((caption, looks[0]))
        return draw(looks, suffix, layout, caption)

    monkeypatch.setattr(drawing, "draw", recording)
    first = show(inputs=[image], output=tmp_path / "run.gif", snapshots=[run], **SOURCE).looks
    assert [caption for caption, _ in drawn] == ["step 0", "step 5", "step 10"]
    assert first[0] is drawn[0][1]
    for (_, each), weight in zip(drawn, (0.0, 0.5, 1.0), strict=True):
        np.testing.assert_allclose(each.warps[0].points[0, 0], (weight * 0.5 * 3, weight * 0.5 * 4), atol=1e-5)
        np.testing.assert_array_equal(each.warps[0].source, first[0].warps[0].source)
    with Image.open(tmp_path / "run.gif") as animation:
        durations = []
        for index in range(animation.n_frames):  # type: ignore[attr-defined]
            animation.seek(index)
            animation.load()
            durations.append(animation.info["duration"])
    assert durations == [250, 250, 1000]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "run.png"}, "--snapshots make an animation; write a .gif or .webp"),
        ({"weights": "x.pt"}, "omit --weights and --frames"),
        ({"frames": 3}, "omit --weights and --frames"),
        ({"snapshots": []}, "at least 2 frames, not 0"),
        ({"model": "model.onnx"}, "model.onnx contains its weights"),
    ],
)
def test_what_does_not_go_with_snapshots(
    run: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "model" in options:
        save(tmp_path / "model.onnx", Shift(), (1, 8, 6))
    given = {"inputs": [image], "output": "run.gif", "snapshots": [run], **SOURCE, **options}
    with pytest.raises(UsageError, match=message):
        show(**given)


def test_the_command_takes_them_too(run: Path, image: Path) -> None:
    from stn_infer.cli.show import command

    options = ["--input-shape", "1,8,6", "--snapshots", str(run), "-o", "run.png"]
    failed = CliRunner().invoke(command, [SOURCE["model"], str(image), *options])
    assert isinstance(failed.exception, UsageError) and "write a .gif or .webp file" in str(failed.exception)


def test_a_checkpoint_of_another_network_is_named(run: Path, image: Path, tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, run / "step-3.safetensors")
    with pytest.raises(WeightsError, match=r"step-3\.safetensors: the keys do not fit Shift"):
        show(inputs=[image], output=tmp_path / "run.gif", snapshots=[run], **SOURCE)
