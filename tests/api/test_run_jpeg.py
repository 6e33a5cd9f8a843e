"""JPEG files by nvImageCodec in `run`, `Predictor` and `eval`, on the CPU: what is predicted, recorded and resumed."""

from __future__ import annotations

import csv
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stn_infer.api.evaluate import evaluate
from stn_infer.api.predictor import Predictor
from stn_infer.api.run import run
from stn_infer.backends.base import TensorSpec
from stn_infer.data.codecs.nvimgcodec import JpegDecoder
from stn_infer.errors import OutputError
from tests.api.test_run import FLOAT32, PIXELS, Fake
from tests.support.tensorrt_parts import module_or_skip

RULE = "gray,size=4,scale=1/255"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    module_or_skip("nvidia.nvimgcodec", "nvidia-nvimgcodec-cu13")
    folder = tmp_path / "in"
    for index in range(6):
        path = folder / str(index % 3) / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 30 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
    (folder / "1/4.jpg").write_bytes((folder / "1/4.jpg").read_bytes()[:-100])
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures that nvImageCodec decoded of each batch."""
    real, counts = JpegDecoder.decode, []

    def decode(self: JpegDecoder, *arguments: Any) -> Any:
        found = real(self, *arguments)
        counts.append(sum(pixels is not None for pixels in found))
        return found

    monkeypatch.setattr(JpegDecoder, "decode", decode)
    return counts


def rows(folder: Path) -> list[list[str]]:
    return list(csv.reader((folder / "predictions-00000.csv").read_text().splitlines()))[1:]


def test_a_job_is_that_of_pillow_and_says_what_decoded(images: Path, tmp_path: Path, decoded: list[int]) -> None:
    run(Fake(), images, tmp_path / "exact", preprocess=RULE)
    assert not decoded
    how: dict[str, Any] = {"preprocess": f"{RULE},jpeg=nvimgcodec", "batch_size": 4}
    summary = run(Fake(), images, tmp_path / "out", **how)
    assert (summary.ok, summary.failed) == (5, 1) and sorted(decoded) == [2, 3]
    ledgers = [(tmp_path / name / "ledger-00000.csv").read_text() for name in ("exact", "out")]
    assert ledgers[0] == ledgers[1] and "truncated" in ledgers[0]
    for one, other in zip(rows(tmp_path / "exact"), rows(tmp_path / "out"), strict=True):
        assert one[:1] == other[:1] and np.allclose([*map(float, one[-3:])], [*map(float, other[-3:])], atol=1 / 255)
    described = json.loads((tmp_path / "out/run.json").read_text())
    assert described["preprocess"]["jpeg"] == "nvimgcodec"
    assert re.fullmatch(r"NumPy \S+, Pillow \S+, nvImageCodec \(CPU\) 0\.\S+, PyTorch \d\S+", described["libraries"])
    assert run(Fake(), images, tmp_path / "out", resume=True, **how).resumed == 6
    with pytest.raises(OutputError, match="cannot resume another job: preprocess was"):
        run(Fake(), images, tmp_path / "out", resume=True, preprocess=RULE)
    with pytest.raises(OutputError, match=r"cannot resume another job: libraries was .*\(CPU\).*, now .*\(GPU\)"):
        run(Fake(device="cuda:0"), images, tmp_path / "out", resume=True, **how)


def test_a_model_that_takes_arrays_needs_no_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is one of its two inputs, so that no image file is a sample."""
    monkeypatch.setattr("stn_infer.data.codecs.nvimgcodec.require", None)
    monkeypatch.setattr("stn_infer.data.codecs.nvimgcodec.identity", None)
    np.savez(tmp_path / "x.npz", input=np.zeros((2, 1, 4, 4), np.float32), gain=np.zeros((2, 3), np.float32))
    fake = Fake(inputs=[*PIXELS, TensorSpec("gain", (None, 3), FLOAT32)])
    assert run(fake, tmp_path / "x.npz", tmp_path / "out", preprocess="gray,jpeg=nvimgcodec").ok == 2
    assert "nvImageCodec" not in json.loads((tmp_path / "out/run.json").read_text())["libraries"]


def test_a_predictor_decodes_files_and_bytes_in_batches(images: Path, decoded: list[int]) -> None:
    paths = sorted(images.rglob("*.jpg"))
    items = [path.read_bytes() for path in paths] + [Image.open(BytesIO(paths[0].read_bytes()))]
    with Predictor(Fake(), preprocess=f"{RULE},jpeg=nvimgcodec", errors="return") as predictor:
        of_paths = list(predictor(paths))
        assert sum(decoded) == 5
        of_bytes = list(predictor(items))
    assert sum(decoded) == 10
    failed = [index for index, found in enumerate(of_bytes) if found.error]
    assert failed == [index for index, path in enumerate(paths) if path.name == "4.jpg"]
    assert of_bytes[failed[0]].error.startswith(f"[{failed[0]}] is damaged or unreadable: image file is truncated")
    for one, other in zip(of_paths, of_bytes, strict=False):
        assert one.error or np.array_equal(one.outputs["scores"], other.outputs["scores"])
    assert np.allclose(of_bytes[-1].outputs["scores"], of_bytes[0].outputs["scores"], atol=1 / 255)


def test_eval_decodes_in_batches(images: Path, decoded: list[int]) -> None:
    found = evaluate(Fake(), images, preprocess=f"{RULE},jpeg=nvimgcodec")
    assert (found.scored, found.failed) == (5, 1) and sum(decoded) == 5
