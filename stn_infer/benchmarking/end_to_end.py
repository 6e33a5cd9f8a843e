"""The widest boundary: image files are read, decoded, pre-processed, run, and their predictions written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stn_infer.backends.base import Array, Backend
from stn_infer.benchmarking.prepare import Prepared
from stn_infer.benchmarking.runner import Bound, Runner
from stn_infer.errors import ModelError
from stn_infer.metadata import Preprocess

_BATCHES = 4
_FEWEST = 64


class EndToEnd(Runner):
    """``stn-infer run`` with an open backend, on a folder of PNG files; a call is the whole folder."""

    def __init__(self, name: str, prepared: Prepared, device: str, threads: int) -> None:
        shape = prepared.input_shapes[0]
        if len(prepared.input_shapes) != 1 or len(shape) != 3 or shape[0] not in (1, 3):
            raise ModelError("end to end means image files, and the model takes no single image of 1 or 3 channels")
        if prepared.precision != "fp32":
            raise ModelError("`run` feeds float32 only")
        self.shape: tuple[int, ...] = shape
        # `run` has a worker a core, each with one thread
        self.workers = threads
        self.backend = _open(name, prepared, device, 1 if device == "cpu" else threads)
        self.preprocess = (
            prepared.load().metadata.preprocess if prepared.source is not None else self.backend.metadata.preprocess
        )

    def bind(self, inputs: Sequence[Array]) -> Bound:
        """See :class:`stn_infer.benchmarking.runner.Runner`."""
        return _Folder(self, inputs)

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.benchmarking.runner.Runner`."""
        return {**self.backend.describe(), "workers": str(self.workers)}

    def close(self) -> None:
        """Let go of the model."""
        self.backend.close()


class _Folder(Bound):
    def __init__(self, runner: EndToEnd, inputs: Sequence[Array]) -> None:
        from PIL import Image

        from stn_infer.data.samples import sample_images

        self._runner = runner
        self._inputs = inputs
        self._batch = len(inputs[0])
        self.items = max(_FEWEST, _BATCHES * self._batch)
        self._folder = Path(tempfile.mkdtemp(prefix="stn-bench-"))
        self._files, self._output = self._folder / "images", self._folder / "predictions"
        self._files.mkdir()
        plain = Preprocess("rgb" if runner.shape[0] == 3 else "grey", scale=1.0)
        pixels = sample_images(self.items, runner.shape, plain).astype(np.uint8)
        for index, image in enumerate(pixels):
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
                self._files / f"{index:06d}.png"
            )

    def call(self) -> object:
        from stn_infer.pipeline.inference import run

        runner = self._runner
        shutil.rmtree(self._output, ignore_errors=True)
        done = run(
            runner.backend,
            self._files,
            self._output,
            batch_size=self._batch,
            format="npz",
            preprocess=runner.preprocess,
            workers=runner.workers,
        )
        if done.failed:
            raise ModelError(f"{done.failed} of {done.total} files failed: {done.failures[0][1]}")
        return done

    def outputs(self) -> Sequence[Array]:
        feeds = dict(zip((spec.name for spec in self._runner.backend.inputs), self._inputs, strict=True))
        return list(self._runner.backend.run(feeds).values())

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _open(name: str, prepared: Prepared, device: str, threads: int) -> Backend:
    from stn_infer.benchmarking.variants import onnx_file

    if name in ("eager", "compile"):
        from stn_infer.backends.eager import EagerBackend

        return EagerBackend(prepared.load(), device, compile=name == "compile", threads=threads)
    path = Path(onnx_file(name, prepared))
    if name.startswith("ort"):
        from stn_infer.backends.ort import OrtBackend

        return OrtBackend(path, device, threads, plugin=name == "ort-fused")
    from stn_infer.backends.tensorrt import open_tensorrt
    from stn_infer.engines.building import BuildOptions

    runtime = "tensorrt-rtx" if name == "trt-rtx" else "tensorrt"
    index = int(device.partition(":")[2] or 0)
    return open_tensorrt(
        path,
        runtime,
        device,
        BuildOptions(runtime=runtime, plugin=name == "trt-fused", device=index),  # type: ignore[arg-type]
    )
