"""Finding, loading and building the plugin library, and the ``plugin`` command."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from stn_infer import plugin
from stn_infer.cli.plugin import command
from stn_infer.errors import MissingDependencyError, ModelError, OutputError, UsageError

needs_library = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)


def test_the_named_library_is_the_only_candidate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(plugin.ENVIRONMENT, str(tmp_path / "none.so"))
    assert plugin.candidates() == (tmp_path / "none.so",)
    assert not plugin.available()
    with pytest.raises(MissingDependencyError, match="is not built"):
        plugin.library_path()
    with pytest.raises(MissingDependencyError, match="plugin build"):
        plugin.load()
    found = plugin.info()
    assert found.path is None and found.problem is not None and not found.cuda


@pytest.mark.parametrize("content", [b"", b"no library at all"])
def test_a_library_that_does_not_load_reports_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    broken = tmp_path / "libstn_plugins.so"
    broken.write_bytes(content)
    monkeypatch.setenv(plugin.ENVIRONMENT, str(broken))
    assert not plugin.available()
    with pytest.raises(MissingDependencyError, match="does not load"):
        plugin.load()


def test_an_unrelated_library_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line)
    monkeypatch.setenv(plugin.ENVIRONMENT, name)
    with pytest.raises(MissingDependencyError, match="stn_check"):
        plugin.load()


USABLE = "int stn_cuda_usable(int device) { return 0; }"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("check", "others"),
    [
        ("return 1", f"int stn_op_version(const char* name) {{ return 2; }} {USABLE}"),  # the struct has another size
        ("return 0", USABLE),  # older than versions of ops
        ("return 0", f"int stn_op_version(const char* name) {{ return 1; }} {USABLE}"),
        ("return 0", f"int stn_op_version(const char* name) {{ return name[0] == 'P' ? 3 : 1; }} {USABLE}"),  # newer
        ("return 0", "int stn_op_version(const char* name) { return name[0] == 'P' ? 2 : 1; }"),  # no stn_cuda_usable
    ],
)
def test_a_library_of_another_version_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: str, others: str
) -> None:
    source, library = tmp_path / "other.c", tmp_path / "libother.so"
    runs = "".join(f"void {name}(void) {{}}" for name in ("stn_run_cpu", "stn_run_cuda"))
    texts = "".join(
        f"const char* {name}(void) {{ return 0; }}" for name in ("stn_status_text", "stn_version", "stn_cpu_isa")
    )
    source.write_text(f"int stn_check(void* problem) {{ {check}; }} {others} {runs} {texts}")
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    monkeypatch.setenv(plugin.ENVIRONMENT, str(library))
    assert not plugin.available()
    words = f"the plugin library {library} is from another version of stn-infer; `stn-infer plugin build` builds it"
    with pytest.raises(MissingDependencyError, match=re.escape(words)):
        plugin.load()


@needs_library
def test_the_problem_has_the_librarys_memory_layout() -> None:
    """The library checks struct_size: both sizes must be equal."""
    assert ctypes.sizeof(plugin.Problem) == 272
    value = (ctypes.c_float * 1)(2.0)
    theta = (ctypes.c_float * 6)(1, 0, 0, 0, 1, 0)
    output = (ctypes.c_float * 1)()
    fields = {
        "rank": 2, "batch": 1, "channels": 1, "input_size": (ctypes.c_int64 * 3)(1, 1, 0), "theta_batch": 1,
        "output_size": (ctypes.c_int64 * 3)(1, 1, 0), "basis_rows": 3, "input_batch": 1,
        "input": ctypes.addressof(value), "theta": ctypes.addressof(theta), "output": ctypes.addressof(output),
    }  # fmt: skip
    plugin.run_cpu(plugin.Problem(**fields))
    assert output[0] == 2.0
    with pytest.raises(ModelError, match="rank, kind, mode"):
        plugin.run_cpu(plugin.Problem(**fields | {"rank": 5}))
    if not plugin.load().stn_has_cuda():
        with pytest.raises(ModelError, match="built without CUDA"):
            plugin.run_cuda(plugin.Problem(**fields), 0)
        assert plugin.load().stn_cuda_usable(0) == 0
        assert re.search(r"has no CUDA kernels; `stn-infer plugin build` builds", str(plugin.cuda_problem()))


@needs_library
def test_the_library_needs_only_the_c_and_cpp_runtimes() -> None:
    """No onnxruntime, no TensorRT, no shared CUDA runtime; and it exports its three interfaces and nothing else."""
    path = str(plugin.library_path())
    needed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    libraries = {line.split("[")[1].rstrip("]") for line in needed.splitlines() if "(NEEDED)" in line}
    stems = {name.split(".")[0] for name in libraries}
    assert stems <= {"libstdc++", "libm", "libgcc_s", "libc", "ld-linux-x86-64", "libpthread", "libdl", "librt"}
    symbols = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in symbols.splitlines()}
    interfaces = {"RegisterCustomOps", "getCreators", "setLoggerFinder"}
    assert {name for name in names if not name.startswith(("stn_", "_Z"))} <= interfaces
    assert not any(name.startswith("_ZN3stn") for name in names)
    assert "RegisterCustomOps" in names


@pytest.mark.parametrize(
    ("arch", "expected"), [("all", "all"), ("native", "native"), ("sm90", "90"), ("80, sm_120", "80;120")]
)
def test_architectures(arch: str, expected: str) -> None:
    assert plugin.parse_arch(arch) == expected


@pytest.mark.parametrize("arch", ["", "hopper", "sm9", "90;80", "sm90,"])
def test_wrong_architectures(arch: str) -> None:
    with pytest.raises(UsageError, match="expected native, all or"):
        plugin.parse_arch(arch)


def test_building_without_sources_or_tools_reports_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(plugin, "_SOURCES", tmp_path)
        with pytest.raises(MissingDependencyError, match="build from a checkout"):
            plugin.build()
    with monkeypatch.context() as patch:
        patch.setattr(plugin, "_which", lambda tool: None)
        with pytest.raises(MissingDependencyError, match="cmake and a C\\+\\+17 compiler"):
            plugin.build()


def test_a_wheels_library_is_built_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It precedes the wheel's own, unless it belongs to another user."""
    monkeypatch.delenv(plugin.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plugin, "_CHECKOUT", None)
    folder = plugin._build_folder()
    assert folder.is_relative_to(tmp_path / "cache" / "stn-infer" / "plugins")
    monkeypatch.setattr(plugin, "_PACKAGE", tmp_path / "another" / "stn_infer")
    assert plugin._build_folder() != folder

    done = subprocess.CompletedProcess([""], 0, "", "")
    monkeypatch.setattr(plugin, "run_tool", lambda command: done)
    monkeypatch.setattr(plugin, "_BUILD", folder)
    assert plugin.build(cuda=False) == folder / plugin.FILE_NAME == plugin.candidates()[0]
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / plugin.FILE_NAME).touch()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert folder / plugin.FILE_NAME not in plugin.candidates()
    with pytest.raises(OutputError, match="belongs to another user; expected a folder of your own"):
        plugin.build(cuda=False)


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("c++") is None, reason="no cmake or C++ compiler")
def test_a_failed_build_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text('message(FATAL_ERROR "no way")\n')
    monkeypatch.setattr(plugin, "_SOURCES", tmp_path)
    monkeypatch.setattr(plugin, "_BUILD", tmp_path / "build")
    with pytest.raises(ModelError, match=r"building the plugin library failed: CMake Error.*no way") as caught:
        plugin.build(cuda=False)
    assert "\n" not in str(caught.value)


def compiler_packages(folder: Path, without: str = "") -> Path:
    """The files of the PyPI compiler packages in site-packages that are checked."""
    for package, part in plugin._NVCC_PACKAGES.items():
        if package != without:
            path = folder / "nvidia" / "cu13" / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o755)
    return folder


@pytest.fixture
def no_system_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = shutil.which
    monkeypatch.setattr(shutil, "which", lambda tool, path=None: None if tool == "nvcc" else find(tool, path=path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])


@pytest.mark.usefixtures("no_system_nvcc")
def test_nvcc_of_pypi_packages_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler_packages(tmp_path)
    found = plugin.info()
    assert found.nvcc == tmp_path / "nvidia" / "cu13" / "bin" / "nvcc" and found.nvcc_packages == ()
    commands: list[list[str]] = []

    def record(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(plugin, "_BUILD", tmp_path / "build")
    monkeypatch.setattr(plugin, "run_tool", record)
    plugin.build("sm90")
    assert f"-DCMAKE_CUDA_COMPILER={found.nvcc}" in commands[0] and "-DSTN_CUDA_ARCH=90" in commands[0]
    assert "--fresh" not in commands[0]
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "CMakeCache.txt").write_text("A:BOOL=ON\nCMAKE_CUDA_COMPILER:FILEPATH=/old/nvcc\n")
    plugin.build("sm90")
    assert "--fresh" in commands[2]


@pytest.mark.parametrize("nvcc", [Path("nvcc"), None])
def test_nvcc_decides_whether_there_are_cuda_kernels(
    nvcc: Path | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also without a GPU, as when a container is built: CMake then compiles for all of them."""
    commands: list[list[str]] = []

    def record(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(plugin, "_find_nvcc", lambda: (nvcc, ()))
    monkeypatch.setattr(plugin, "_BUILD", tmp_path / "build")
    monkeypatch.setattr(plugin, "run_tool", record)
    plugin.build()
    assert f"-DSTN_CUDA={'OFF' if nvcc is None else 'ON'}" in commands[0]
    assert ("-DSTN_CUDA_ARCH=native" in commands[0]) == (nvcc is not None)


def test_cmakes_reason_is_a_sentence() -> None:
    log = """-- The CUDA compiler identification is NVIDIA 13.0.88
CMake Error at CMakeLists.txt:88 (message):
  nvcc compiles for sm75, sm80, sm86, sm87, sm88, sm89, sm90, sm100, sm103,
  not for sm70

-- Configuring incomplete, errors occurred!
"""
    reason = "nvcc compiles for sm75, sm80, sm86, sm87, sm88, sm89, sm90, sm100, sm103, not for sm70"
    assert plugin._first_error(log) == f"CMake Error at CMakeLists.txt:88 (message): {reason}"
    assert plugin._first_error("") == "no output"


@pytest.mark.usefixtures("no_system_nvcc")
@pytest.mark.parametrize("without", ["nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-nvcc"])
def test_missing_nvcc_packages_are_reported(tmp_path: Path, without: str) -> None:
    compiler_packages(tmp_path, without)
    found = plugin.info()
    assert found.nvcc is None
    # without nvcc, the folder of the other packages is unknown
    assert found.nvcc_packages == (tuple(plugin._NVCC_PACKAGES) if without == "nvidia-cuda-nvcc" else (without,))
    with pytest.raises(MissingDependencyError, match=f"nvcc is needed.*pip install.*{without}"):
        plugin.build(cuda=True)
    assert f"not found: pip install {' '.join(found.nvcc_packages)}" in CliRunner().invoke(command, ["info"]).output


def test_what_is_required_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugin, "cuda_problem", lambda index: f"no code for cuda:{index}" if index else None)
    with monkeypatch.context() as patch:
        patch.setattr(plugin, "load", lambda: None)
        plugin.require("cpu")
        plugin.require("cuda", 0)
        with pytest.raises(MissingDependencyError, match=r"^no code for cuda:1$"):
            plugin.require("cuda", 1)
    monkeypatch.setenv(plugin.ENVIRONMENT, str(tmp_path / "none.so"))
    with pytest.raises(MissingDependencyError, match="is not built"):
        plugin.require("cpu")


@needs_library
def test_the_plugin_command_names_cudas_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    state = replace(plugin.info(), cuda=True)
    monkeypatch.setattr(plugin, "info", lambda: state)
    for problem, words in ((None, "yes, and cuda:0 runs them"), ("CUDA: no device", "yes, but CUDA: no device")):
        monkeypatch.setattr(plugin, "cuda_problem", lambda device=0, problem=problem: problem)
        assert f"CUDA kernels {words}\n" in CliRunner().invoke(command, ["info"]).output


@needs_library
def test_the_plugin_command() -> None:
    runner = CliRunner()
    assert runner.invoke(command, ["path"]).output.strip() == str(plugin.library_path())
    output = runner.invoke(command, ["info"]).output
    assert "CPU kernels" in output and "onnxruntime  yes" in output


def test_the_plugin_command_without_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(plugin.ENVIRONMENT, str(tmp_path / "none.so"))
    output = CliRunner().invoke(command, ["info"]).output
    assert "library      none" in output and "models run without it" in output
