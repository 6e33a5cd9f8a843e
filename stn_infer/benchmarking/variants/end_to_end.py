"""The widest boundary: image files are read, decoded, pre-processed, run, and their predictions written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import Backend
from stn_infer.benchmarking.harness.runner import BoundVariant, Inspection, OpenVariant
from stn_infer.benchmarking.prepare.case import Prepared
from stn_infer.benchmarking.record import SamplerPlacement
from stn_infer.errors import ModelError
from stn_infer.metadata import Preprocess

_BATCHES = 4
_FEWEST = 64


class EndToEnd(OpenVariant):
    """``stn-infer run`` with an open backend, on a folder of PNG files; a call is the whole folder."""

    def __init__(self, name: str, prepared: Prepared, device: str, threads: int) -> None:
        shape = prepared.input_shapes[0]
        if len(prepared.input_shapes) != 1 or len(shape) != 3 or shape[0] not in (1, 3):
            raise ModelError("end to end means image files, and the model takes no single image of 1 or 3 channels")
        if prepared.precision != "fp32" and name in ("eager", "compile"):
            raise ModelError(
                "`run` has PyTorch in float32 only; a file in a lower precision runs in the other runtimes"
            )
        self.shape: tuple[int, ...] = shape
        self.name, self.prepared, self.device, self.cuts = name, prepared, device, prepared.cuts
        # `run` has a worker a core, each with one thread
        self.workers = threads
        self.backend = _open(name, prepared, device, 1 if device == "cpu" else threads)
        self.preprocess = prepared.preprocess or self.backend.metadata.preprocess

    def bind(self, inputs: Sequence[Array]) -> BoundVariant:
        """See :class:`stn_infer.benchmarking.harness.runner.OpenVariant`."""
        return _Folder(self, inputs)

    def file(self) -> Path:
        """The ONNX file that the backend runs."""
        from stn_infer.benchmarking.prepare.case import onnx_file

        return Path(onnx_file(self.name, self.prepared))

    def inspect(self, inputs: Sequence[Array]) -> Inspection:
        """Who runs the samplers in the open backend, or in one like it."""
        from stn_infer.backends.ort import OrtBackend

        if isinstance(self.backend, OrtBackend):
            from stn_infer.benchmarking.variants.ort_stages import inspect_session, named_nodes

            fused = self.backend.describe()["plugin"] != "none"
            feeds = dict(zip((spec.name for spec in self.backend.inputs), inputs, strict=True))
            again = partial(OrtBackend, device=self.device, threads=1, plugin=fused)
            return inspect_session(again, named_nodes(self.file(), fused), feeds, self.cuts, self.device)
        described = self.backend.describe()
        if "spatial transformers" in described:
            sampler = SamplerPlacement("all", described["spatial transformers"], f"TensorRT on {self.device}")
            return Inspection((sampler,))
        return self._inspect_module(inputs)

    def _inspect_module(self, inputs: Sequence[Array]) -> Inspection:
        import torch

        from stn_infer.benchmarking.variants.torch_stages import inspect_module

        module = self.prepared.load().module.to(self.device)
        tensors = [torch.from_numpy(array).to(self.device) for array in inputs]
        with torch.inference_mode():
            return inspect_module(partial(module, *tensors), module, tensors, compiled=self.backend.name == "compile")

    def describe(self) -> dict[str, str]:
        """See :class:`stn_infer.benchmarking.harness.runner.OpenVariant`."""
        return {**self.backend.describe(), "workers": str(self.workers)}

    def close(self) -> None:
        """Let go of the model."""
        self.backend.close()


class _Folder(BoundVariant):
    alone = "`run` has workers of its own"

    def __init__(self, runner: EndToEnd, inputs: Sequence[Array]) -> None:
        from PIL import Image

        from stn_infer.reference.samples import sample_images

        self._runner = runner
        self._inputs = inputs
        self._batch = len(inputs[0])
        self.items = max(_FEWEST, _BATCHES * self._batch)
        self._folder = Path(tempfile.mkdtemp(prefix="stn-bench-"))
        self._files, self._output = self._folder / "images", self._folder / "predictions"
        self._files.mkdir()
        plain = Preprocess("rgb" if runner.shape[0] == 3 else "gray", scale=1.0)
        pixels = sample_images(self.items, runner.shape, plain).astype(np.uint8)
        for index, image in enumerate(pixels):
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
                self._files / f"{index:06d}.png"
            )

    def call(self) -> object:
        from stn_infer.pipeline.inference import RunOptions, run_job

        runner = self._runner
        shutil.rmtree(self._output, ignore_errors=True)
        options = RunOptions(batch_size=self._batch, format="npz", preprocess=runner.preprocess, workers=runner.workers)
        done = run_job(runner.backend, [self._files], self._output, options, model=runner.backend.metadata.source)
        if done.failed:
            raise ModelError(f"{done.failed} of {done.total} files failed: {done.failures[0][1]}")
        return done

    def outputs(self) -> Sequence[Array]:
        feeds = dict(zip((spec.name for spec in self._runner.backend.inputs), self._inputs, strict=True))
        return list(self._runner.backend.run(feeds).values())

    def inspect(self) -> Inspection:
        """Of the model on one batch; stages are a part of a call that reads and writes files besides."""
        found = self._runner.inspect(self._inputs)
        reason = "a call reads, decodes and writes files besides"
        return Inspection(found.samplers, left_out={**found.left_out, "stages": reason})

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _open(name: str, prepared: Prepared, device: str, threads: int) -> Backend:
    from stn_infer.benchmarking.prepare.case import onnx_file

    if name in ("eager", "compile"):
        from stn_infer.backends.eager import EagerBackend

        return EagerBackend(prepared.load(), device, compile=name == "compile", threads=threads)
    path = Path(onnx_file(name, prepared))
    if name.startswith("ort"):
        from stn_infer.backends.ort import OrtBackend

        return OrtBackend(path, device, threads, plugin=name == "ort-fused")
    from stn_infer.backends.tensorrt.backend import open_tensorrt
    from stn_infer.backends.tensorrt.engine import BuildOptions

    runtime = "tensorrt-rtx" if name == "trt-rtx" else "tensorrt"
    index = int(device.partition(":")[2] or 0)
    return open_tensorrt(
        path,
        runtime,
        device,
        BuildOptions(runtime=runtime, plugin=name == "trt-fused", device=index),  # type: ignore[arg-type]
    )
