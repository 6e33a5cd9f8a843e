"""The file with the times of kernels: read, extended, shared by builds, and refused or replaced if it is unusable."""

from __future__ import annotations

from pathlib import Path

import pytest

from stn_infer.backends.tensorrt import engine as building
from stn_infer.backends.tensorrt.builder import build_plan
from stn_infer.backends.tensorrt.engine_cache import EngineCache
from stn_infer.backends.tensorrt.options import BuildOptions
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT
from stn_infer.backends.tensorrt.timing_cache import TimingCache
from stn_infer.errors import FallbackWarning, ModelError, OutputError
from tests.backends.tensorrt.test_builder import model
from tests.support.tensorrt_builder import MAGIC, OTHER_GPU, Recorder, on_gpu


def build(layers: list[str], timing: TimingCache | None, recorder: Recorder | None = None) -> Recorder:
    module = recorder or Recorder(layers=layers)
    assert build_plan(TensorRT("tensorrt", module, "11.4.0"), model(), (), timing=timing).engine == b"engine"
    return module


def test_a_second_build_measures_only_what_is_new(tmp_path: Path) -> None:
    timing = TimingCache(tmp_path / "times", named=True)
    assert [layer for layer, _ in build(["A", "B"], timing).measured] == ["A", "B"]
    assert timing.path.read_bytes() == MAGIC + b"A 0\nB 1"
    assert build(["A", "B", "C"], timing).measured == [("C", "0")]
    assert timing.path.read_bytes() == MAGIC + b"A 0\nB 1\nC 0"
    assert build(["A", "B", "C"], timing).measured == []
    assert len(build(["A"], None).measured) == 1, "without a file every kernel is measured"


def test_what_another_build_wrote_in_the_meantime_stays(tmp_path: Path) -> None:
    timing = TimingCache(tmp_path / "times", named=True)
    slow = Recorder(layers=["A", "B"])
    slow.while_building = lambda: (build(["B", "C"], timing), None)[1]
    build([], timing, slow)
    assert timing.path.read_bytes() == MAGIC + b"A 0\nB 1\nC 1"


@pytest.mark.parametrize("content", [b"\x08\x09 an ONNX file", OTHER_GPU + b"A 7", b"\n"])
def test_an_unusable_file_is_refused_if_it_was_named_and_else_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "times"
    path.write_bytes(content)
    wanted = "times is not a timing cache of TensorRT 11.4.0 on this GPU; delete it or name another file"
    with pytest.raises(ModelError, match=wanted):
        build(["A"], TimingCache(path, named=True))
    assert path.read_bytes() == content
    failing = TensorRT("tensorrt", Recorder(layers=["A"], builds=False), "11.4.0")
    with pytest.raises(ModelError, match="cannot build the model: it gives no reason"):
        build_plan(failing, model(), (), timing=TimingCache(path))
    assert path.read_bytes() == content
    plan = build_plan(TensorRT("tensorrt", Recorder(layers=["A"]), "11.4.0"), model(), (), timing=TimingCache(path))
    assert (plan.engine, plan.warnings, path.read_bytes()) == (b"engine", (), MAGIC + b"A 0")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder; name a file"):
        TimingCache(tmp_path, named=True).check()
    with pytest.raises(OutputError, match="no such folder"):
        TimingCache(tmp_path / "none" / "times", named=True).check()
    with pytest.raises(ModelError, match="expected a timing cache, found Is a directory"):
        build(["A"], TimingCache(tmp_path, named=True))


def test_an_engine_is_not_lost_with_the_times_of_its_kernels(tmp_path: Path) -> None:
    timing = TimingCache(tmp_path / "gone" / "times")
    timing.path.parent.mkdir()
    timing.check()
    module = Recorder(layers=["A"])
    module.while_building = timing.path.parent.rmdir
    with pytest.warns(FallbackWarning, match="the times of kernels are not kept: .*No such file or directory"):
        build([], timing, module)


def test_the_engine_cache_has_one_for_each_version_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Recorder(layers=["A"])
    gpu = [Gpu("a GPU", "sm89")]
    version = ["11.4.0"]
    on_gpu(monkeypatch, lambda: TensorRT("tensorrt", module, version[0]), lambda: gpu[0])
    cache = EngineCache(tmp_path / "cache")

    def built(rebuild: bool = False, **options: bool) -> int:
        """How many kernels were measured."""
        before = len(module.measured)
        request = building.request_engine(model().SerializeToString(), BuildOptions(plugin=False, **options))
        building.build_or_reuse(request, cache, rebuild, None)
        return len(module.measured) - before

    assert built() == 1
    assert built(tf32=True) == 0, "another engine, the same kernels"
    assert built(rebuild=True) == 1, "a rebuild measures again"
    (path,) = cache.folder.glob("*.timing")
    assert path.read_bytes() == MAGIC + b"A 1" and path.stat().st_mode & 0o777 == 0o600
    gpu[0] = Gpu("another GPU", "sm89")
    assert built() == 1
    version[0] = "11.5.0"
    assert built() == 1
    assert len(list(cache.folder.glob("*.timing"))) == 3
    assert len(cache.clear()) == 4 and not list(cache.folder.glob("*.timing"))


def test_a_link_in_the_engine_cache_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(MAGIC + b"A 9")
    (tmp_path / "times").symlink_to(tmp_path / "elsewhere")
    assert build(["A"], TimingCache(tmp_path / "times")).measured == [("A", "0")]
    assert not (tmp_path / "times").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == MAGIC + b"A 9"
