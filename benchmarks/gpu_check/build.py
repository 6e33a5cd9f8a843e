"""Build what the steps need: the plugin library, and the C++ programs that test it.

    python -m benchmarks.gpu_check.build --arch sm90      # on any machine with g++ and nvcc

On the machine with the GPU, ``--if-needed`` builds only if something is missing or does not load, as where the C
library is older than that of the machine that built it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu_check.steps import LIBRARY, PROGRAMS, ROOT, environment
from stn_infer.serving.service import REGISTER_FILE

_COMPILE = ("g++", "-std=c++17", "-O1", "-Iplugins/include")
#: The programs, and the rest of the command that compiles them; and arguments for which one prints its usage.
_SOURCES = {
    "kernels_test": ("-Wl,-rpath,$ORIGIN/..", "-pthread", "plugins/tests/kernels_test.cpp", str(LIBRARY), "-ldl"),
    "tensorrt_host": ("plugins/tests/tensorrt_host.cpp", "-ldl"),
    "onnxruntime_host": ("plugins/tests/onnxruntime_host.cpp", "-ldl"),
}
_USAGE = {"kernels_test": ("--help",), "tensorrt_host": (), "onnxruntime_host": ()}


def problem(cuda: bool) -> str:
    """What is missing or does not load; empty: nothing.

    Args:
        cuda: whether the library must have CUDA kernels.
    """
    code = f"from stn_infer import plugin; found = plugin.info(); print(found.problem or (found.cuda or not {cuda}))"
    found = _output([sys.executable, "-c", code])
    if found != "True":
        return f"the library: {'it has no CUDA kernels' if found == 'False' else found}"
    for name in _SOURCES:
        if not (said := _output([str(PROGRAMS / name), *_USAGE[name]])).startswith("usage"):
            return f"{name}: {said}"
    return ""


def build(arch: str, cuda: bool, library: bool) -> None:
    """Build the programs and, if ``library``, before them the library; else the installed ones are copied.

    Raises:
        CalledProcessError: a compiler fails; it has printed why.
        OSError: there is no g++, or no library to copy.
    """
    kinds = ("--cuda", "--arch", arch) if cuda else ("--no-cuda",)
    if library:
        _run([sys.executable, "-m", "stn_infer.cli.main", "plugin", "build", *kinds])
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    if not LIBRARY.is_file():  # it was installed with the package, and so was the library that registers it
        found = Path(_output([sys.executable, "-c", "from stn_infer import plugin; print(plugin.library_path())"]))
        for name in (REGISTER_FILE, LIBRARY.name):
            shutil.copy2(found.with_name(name), LIBRARY.with_name(name))
    for name, rest in _SOURCES.items():
        _run([*_COMPILE, *rest, "-o", str(PROGRAMS / name)])


def _run(command: list[str]) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment()}, check=True)


def _output(command: list[str]) -> str:
    """The last line that a program prints."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def main(argv: list[str] | None = None) -> int:
    """Build; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="native", help="GPU architectures, as for `stn-infer plugin build`")
    parser.add_argument("--no-cuda", action="store_true", help="without CUDA kernels, to try the steps on a CPU")
    parser.add_argument("--if-needed", action="store_true", help="only if something is missing or does not load")
    arguments = parser.parse_args(argv)
    cuda = not arguments.no_cuda
    found = problem(cuda)
    if not found and arguments.if_needed:
        print("the library and the programs load")
        return 0
    print(f"building: {found or 'asked for'}", flush=True)
    try:
        build(arguments.arch, cuda, not arguments.if_needed or found.startswith("the library"))
    except (subprocess.CalledProcessError, OSError) as error:
        print(error)
        return 1
    found = problem(cuda)
    print(found or "the library and the programs load")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
