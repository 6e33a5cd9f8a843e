"""The end-to-end boundary: image files are read, decoded, preprocessed, run, and their predictions written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from stn_infer.arrays import Array
from stn_infer.backends.base import Backend
from stn_infer.benchmarking.harness.variant import BoundVariant, Inspection, OpenVariant
from stn_infer.benchmarking.prepare.case import Setup, onnx_file
from stn_infer.benchmarking.record import SamplerPlacement
from stn_infer.data.loader import resolve_preprocess
from stn_infer.errors import ModelError
from stn_infer.preprocess.rule import Preprocess

_BATCHES = 4
_FEWEST = 64


class EndToEnd(OpenVariant):
    """``stn-infer run`` with an open backend, on a folder of PNG files; a call is the whole folder."""

    def __init__(self, name: str, setup: Setup) -> None:
        prepared, device = setup.prepared, setup.device
        shape = prepared.input_shapes[0]
        if len(prepared.input_shapes) != 1 or len(shape) != 3 or shape[0] not in (1, 3):
            raise ModelError("end to end needs image files, and the model does not take one image of 1 or 3 channels")
        if prepared.precision != "fp32" and name in ("eager", "compile"):
            raise ModelError(
                "`run` has PyTorch in float32 only; a file in reduced precision runs in the other runtimes"
            )
        self.shape: tuple[int, ...] = shape
        self.prepared, self.device = prepared, device
        self.file = None if name in ("eager", "compile") else Path(onnx_file(name, prepared))
        self.workers = setup.threads  # `run` has a worker per core, each with one thread
        self.backend = _open(name, setup, self.file)
        # what had to be assumed was told when the case was loaded
        self.preprocess = resolve_preprocess(
            self.backend.inputs, prepared.preprocess or self.backend.metadata.preprocess, None
        )

    def bind(self, inputs: Sequence[Array]) -> BoundVariant:
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        return _Folder(self, inputs)

    def inspect(self, inputs: Sequence[Array]) -> Inspection:
        """Where the samplers run in the open backend, or in one like it."""
        from stn_infer.backends.ort import OrtBackend

        feeds = dict(zip((spec.name for spec in self.backend.inputs), inputs, strict=True))
        if isinstance(self.backend, OrtBackend) and self.file is not None:
            from stn_infer.benchmarking.variants.ort_stages import inspect_session, named_nodes

            fused = self.backend.describe()["plugin"] != "none"
            again = partial(OrtBackend, device=self.device, threads=1, plugin=fused)
            return inspect_session(again, named_nodes(self.file, fused), feeds, self.prepared.cuts, self.device)
        if self.backend.name == "openvino" and self.file is not None:
            from stn_infer.backends.openvino.backend import OpenVinoBackend
            from stn_infer.benchmarking.variants.openvino import inspect_backend

            fused = self.backend.describe()["plugin"] != "none"
            profiled = OpenVinoBackend(self.file, threads=1, callers=1, plugin=fused, profile=True)
            try:
                return inspect_backend(profiled, feeds)
            finally:
                profiled.close()
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
        """See :class:`stn_infer.benchmarking.harness.variant.OpenVariant`."""
        return {**self.backend.describe(), "workers": str(self.workers)}

    def close(self) -> None:
        """Release the model."""
        self.backend.close()


class _Folder(BoundVariant):
    alone = "`run` has workers of its own"

    def __init__(self, variant: EndToEnd, inputs: Sequence[Array]) -> None:
        from PIL import Image

        from stn_infer.reference.samples import sample_images

        self._variant = variant
        self._inputs = inputs
        self._batch = len(inputs[0])
        self.items = max(_FEWEST, _BATCHES * self._batch)
        self._folder = Path(tempfile.mkdtemp(prefix="stn-bench-"))
        self._files, self._output = self._folder / "images", self._folder / "predictions"
        self._files.mkdir()
        plain = Preprocess("rgb" if variant.shape[0] == 3 else "gray", scale=1.0)
        pixels = sample_images(self.items, variant.shape, plain).astype(np.uint8)
        rule = variant.preprocess
        suffix = "jpg" if rule is not None and rule.jpeg == "nvimgcodec" else "png"  # it decodes JPEG files only
        for index, image in enumerate(pixels):
            picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
            picture.save(self._files / f"{index:06d}.{suffix}")

    def call(self) -> object:
        from stn_infer.pipeline.inference import run_job
        from stn_infer.pipeline.plan import RunOptions

        variant = self._variant
        shutil.rmtree(self._output, ignore_errors=True)
        options = RunOptions(
            batch_size=self._batch, format="npz", preprocess=variant.preprocess, workers=variant.workers
        )
        done = run_job(variant.backend, [self._files], self._output, options, model=variant.backend.metadata.source)
        if done.failed:
            raise ModelError(f"{done.failed} of {done.total} files failed: {done.failures[0][1]}")
        return done

    def outputs(self) -> Sequence[Array]:
        feeds = dict(zip((spec.name for spec in self._variant.backend.inputs), self._inputs, strict=True))
        return list(self._variant.backend.run(feeds).values())

    def inspect(self) -> Inspection:
        """Of the model on one batch; stages are only a part of a call, which also reads and writes files."""
        found = self._variant.inspect(self._inputs)
        reason = "a call also reads, decodes and writes files"
        return Inspection(found.samplers, left_out={**found.left_out, "stages": reason})

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _open(name: str, setup: Setup, file: Path | None) -> Backend:
    if file is None:
        from stn_infer.backends.eager import EagerBackend

        return EagerBackend(setup.prepared.load(), setup.device, compile=name == "compile", threads=_threads(setup))
    if name.startswith("ort"):
        if setup.device != "cpu":
            from stn_infer.backends.ort_graphs import GraphedOrtBackend

            return GraphedOrtBackend(file, setup.device, _threads(setup), plugin=name == "ort-fused")
        from stn_infer.backends.ort import OrtBackend

        return OrtBackend(file, setup.device, _threads(setup), plugin=name == "ort-fused")
    if name.startswith("openvino"):
        from stn_infer.backends.openvino.backend import OpenVinoBackend

        return OpenVinoBackend(file, setup.device, _threads(setup), plugin=name == "openvino-fused")
    from stn_infer.backends.tensorrt.backend import open_tensorrt
    from stn_infer.backends.tensorrt.options import BuildOptions
    from stn_infer.benchmarking.variants.tensorrt import runtime_of

    options = BuildOptions(runtime=runtime_of(name), plugin=name == "trt-fused", device=setup.device_index)
    return open_tensorrt(file, options.runtime, setup.device, options)


def _threads(setup: Setup) -> int:
    return 1 if setup.device == "cpu" else setup.threads
