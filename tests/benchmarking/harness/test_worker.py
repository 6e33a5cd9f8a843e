"""The worker: what it opens beforehand, so that no variant pays for it."""

from __future__ import annotations

import pytest
import torch

from stn_infer.backends import ort as ort_backend
from stn_infer.benchmarking.harness.worker import open_gpu, open_runtimes


def test_a_worker_opens_what_variants_need_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    from stn_infer.benchmarking.harness import worker

    found: list[str] = []
    monkeypatch.setattr(worker.importlib, "import_module", found.append)
    open_runtimes(("ort", "eager", "compile-fused"))
    assert found == ["onnxruntime", "torch", "torch._inductor.compile_fx"]
    found.clear()
    open_runtimes(("ort-plain",))
    assert found == ["onnxruntime"]
    found.clear()
    open_runtimes(("trt", "trt-rtx"), "cpu")
    assert found == ["torch"]  # TensorRT has nothing to do on a CPU
    found.clear()
    preloaded: list[object] = []
    monkeypatch.setattr(ort_backend, "preload_cuda", preloaded.append)
    open_runtimes(("trt-fused", "trt-rtx", "ort"), "cuda:0")
    assert found == ["onnxruntime", "torch", "tensorrt", "tensorrt_rtx"] and len(preloaded) == 1
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch, "empty", lambda size, device: asked.append(device))
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    open_gpu("cuda:1")
    assert asked == ["cuda:1"] * 3
    monkeypatch.undo()
    if not torch.cuda.is_available():
        open_gpu("cuda:0")  # a PyTorch without CUDA: the variants say so themselves
