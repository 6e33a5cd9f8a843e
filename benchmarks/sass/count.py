"""Count the instructions that the CUDA kernels issue on sm_90, without a GPU, and predict the time of a warp from them.

    pip install nvidia-cuda-nvdisasm        # in addition to nvcc
    python benchmarks/sass/count.py [--kernels] [--case NAME]

The library's own launch code gives the kernel, the grid and the parameters of a case. nvcc compiles the kernels for
sm_90. Some blocks of the launch are drawn at random, and their machine code is simulated warp by warp (``machine.py``).
Their results are compared with float64, so that the counts are those of a correct run. The times for one H100 follow
from the counts:

    memory   bytes that must be read and written / BANDWIDTH
    L2       bytes that the blocks read, each sector once per block, and write / L2_BANDWIDTH
    L1       lookups of up to four 128-byte lines, for each load and store / (SMS * CLOCK)
    issue    warp instructions / (SMS * 4 * CLOCK)

The prediction is the largest of the four. It is a lower bound; a kernel that hides its latencies is only slightly
slower. None of these numbers is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.sass.cases import CASES, Arrays, Case
from benchmarks.sass.lanes import LANES
from benchmarks.sass.machine import PARAMETERS, Warp
from benchmarks.sass.program import Counts, Memory, Program
from stn_infer import plugin

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
SMS = 132
CLOCK = 1.7e9
"""Hertz, under load."""
BANDWIDTH = 3.0e12
"""Bytes per second of a copy, read and written."""

L2_BANDWIDTH = 5.5e12
"""Bytes per second, between the level-2 cache and the SMs."""

_SOURCES = tuple(
    f"{name}.cpp"
    for name in (
        "api", "kernels/cpu", "kernels/cpu_plain", "kernels/processors", "kernels/thread_pool", "kernels/warp",
    )
)  # fmt: skip
_RECORD = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint * 3), ctypes.POINTER(ctypes.c_uint * 3),
    ctypes.POINTER(ctypes.c_char), ctypes.c_size_t,
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel launch of the library."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    parameters: bytes


@dataclass(frozen=True)
class Resources:
    """A kernel's resources, from ptxas: registers per thread; bytes of stack and of spills."""

    registers: int
    stack: int
    spilled: int


@dataclass(frozen=True)
class Row:
    """A case's counts per 32 output pixels (of all channels), and times in microseconds.

    Attributes:
        instructions: that warps issue.
        requests: loads and stores of global memory.
        lines: 128-byte lines that these touch.
        by_opcode: the instructions.
    """

    case: Case
    kernel: str
    resources: Resources
    instructions: float
    requests: float
    lines: float
    memory_us: float
    l2_us: float
    l1_us: float
    issue_us: float
    by_opcode: dict[str, float]

    @property
    def predicted_us(self) -> float:
        """The largest of the four times."""
        return max(self.memory_us, self.l2_us, self.l1_us, self.issue_us)


class Kernels:
    """The library's CUDA kernels: their launch code on the CPU, and their machine code.

    Args:
        folder: for what is compiled.
        root: the plugins' sources.
    """

    def __init__(self, folder: Path, root: Path = PLUGINS) -> None:
        self._library = self._compile_for_cpu(folder, root)
        self.symbols = self._symbols(folder / "launches.so")
        self.resources, self.programs = self._compile(folder, root)

    def _compile_for_cpu(self, folder: Path, root: Path) -> ctypes.CDLL:
        sources = [str(root / "src" / name) for name in _SOURCES]
        flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-w", "-DSTN_RECORD_LAUNCHES", "-pthread"]
        folders = [f"-I{root / name}" for name in ("tests/cuda_on_cpu", "include", "src")]
        command = ["c++", *flags, *folders, *sources, "-xc++", str(root / "src" / "kernels" / "cuda_warp.cu")]
        subprocess.run([*command, "-o", str(folder / "launches.so")], check=True)
        return ctypes.CDLL(str(folder / "launches.so"))

    def _symbols(self, library: Path) -> dict[int, str]:
        listed = subprocess.run(
            ["nm", "-C", "--defined-only", str(library)], check=True, capture_output=True, text=True
        )
        found = {}
        for line in listed.stdout.splitlines():
            address, _, name = line.split(maxsplit=2)
            found[int(address, 16)] = name
        here = next(address for address, name in found.items() if name == "stn_version")
        base = ctypes.cast(self._library.stn_version, ctypes.c_void_p).value or 0
        return {base - here + address: kernel_name(name) for address, name in found.items() if "_kernel<" in name}

    def _compile(self, folder: Path, root: Path) -> tuple[dict[str, Resources], dict[str, Program]]:
        nvcc = shutil.which("nvcc") or sys.exit("nvcc is needed")
        cubin = folder / "kernels.cubin"
        options = ["-std=c++17", "-O3", "-arch=sm_90", "-cubin", "-Xptxas=-v"]
        folders = [f"-I{root / name}" for name in ("include", "src", ".")]
        command = [nvcc, *options, *folders, str(root / "src" / "kernels" / "cuda_warp.cu"), "-o", str(cubin)]
        log = demangled(subprocess.run(command, check=True, capture_output=True, text=True).stderr)
        text = subprocess.run([disassembler(), "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
        return dict(_resources(log)), dict(_programs(text))

    def launch(self, problem: plugin.Problem) -> Launch:
        """The kernel launch of the library for a problem."""
        seen: list[Launch] = []

        def record(kernel: int, grid: object, block: object, parameters: object, size: int) -> None:
            seen.append(
                Launch(self.symbols[kernel], tuple(grid[0]), tuple(block[0]), parameters[:size])  # type: ignore[index]
            )

        callback = _RECORD(record)
        ctypes.c_void_p.in_dll(self._library, "stn_record_launch").value = ctypes.cast(callback, ctypes.c_void_p).value
        status = self._library.stn_run_cuda(ctypes.byref(problem), None)
        if status != 0 or len(seen) != 1:
            raise RuntimeError(f"status {status}, {len(seen)} launches")
        return seen[0]


def kernel_name(text: str) -> str:
    """The short name of a demangled symbol, such as affine_kernel<Packs<float, 4>>."""
    match = re.search(r"(\w+_kernel<.*>)\(", text)
    return (match[1] if match else text).replace("stn::", "").replace("(anonymous namespace)::", "").replace(" >", ">")


def demangled(text: str) -> str:
    """Demangle the C++ names in a text."""
    return subprocess.run(["c++filt"], input=text, check=True, capture_output=True, text=True).stdout


def disassembler() -> str:
    """The path of nvdisasm, from the CUDA toolkit or from PyPI's nvidia-cuda-nvdisasm."""
    found = shutil.which("nvdisasm")
    for path in Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm"):
        found = found or str(path)
    return found or sys.exit("nvdisasm is needed: pip install nvidia-cuda-nvdisasm")


def _resources(log: str) -> list[tuple[str, Resources]]:
    found = []
    for part in log.split("Compiling entry function '")[1:]:
        numbers = [
            re.search(pattern, part) for pattern in (r"Used (\d+) reg", r"(\d+) bytes stack", r"(\d+) bytes spill st")
        ]
        found.append(
            (kernel_name(part.split("'")[0]), Resources(*(int(number[1]) if number else 0 for number in numbers)))
        )
    return found


def _programs(text: str) -> list[tuple[str, Program]]:
    found = []
    for part in text.split("//--------------------- .text.")[1:]:
        lines = part.splitlines()
        found.append((kernel_name(demangled(lines[0].split()[0])), Program(lines)))
    return found


def run_case(kernels: Kernels, case: Case, blocks: int, seed: int = 0) -> Row:
    """Simulate some blocks of a case and check their results.

    Raises:
        SystemExit: a result is wrong.
    """
    memory = Memory()
    arrays = Arrays(case, memory, seed)
    rng = np.random.default_rng(seed)
    launch = kernels.launch(arrays.problem)
    constants = bytearray(PARAMETERS)
    for at, value in enumerate((*launch.block, *launch.grid)):
        constants[4 * at : 4 * at + 4] = value.to_bytes(4, "little")
    total, read = Counts(), 0
    for flat in rng.choice(int(np.prod(launch.grid)), size=blocks, replace=False):
        x, y, z = (int(index) for index in np.unravel_index(int(flat), launch.grid[::-1])[::-1])
        block = Counts()
        for first in range(0, launch.block[0], LANES):
            code = kernels.programs[launch.kernel]
            block.add(Warp(code, bytes(constants) + launch.parameters, memory, (x, y, z), first).run())
        read += 32 * len(block.read)
        block.read.clear()
        total.add(block)
    groups = arrays.check() / case.shape[1] / 32
    scale = case.pixels / 32 / groups  # from the simulated blocks to all blocks
    by_opcode = {name: count / groups for name, count in total.issued.most_common()}
    cycle_us = 1e6 / (SMS * CLOCK)
    return Row(
        case, launch.kernel, kernels.resources[launch.kernel], sum(by_opcode.values()), total.requests / groups,
        total.lines / groups, case.bytes / BANDWIDTH * 1e6, (read * scale + case.image_bytes) / L2_BANDWIDTH * 1e6,
        total.lookups * scale * cycle_us, sum(total.issued.values()) * scale * cycle_us / 4, by_opcode,
    )  # fmt: skip


def main() -> None:
    """Count every case and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--blocks", type=int, default=24, help="blocks of each case to simulate")
    parser.add_argument("--kernels", action="store_true", help="print registers, stack and spills of every kernel")
    parser.add_argument("--opcodes", action="store_true", help="instruction counts by opcode")
    parser.add_argument("--plugins", type=Path, default=PLUGINS, help="folder of the sources")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kernels = Kernels(Path(folder), arguments.plugins)
    if arguments.kernels:
        print("| kernel | registers | stack | spilled |\n|---|---|---|---|")
        for name, r in sorted(kernels.resources.items()):
            print(f"| `{name}` | {r.registers} | {r.stack} | {r.spilled} |")
        print()
    print("| case | kernel | registers | instructions | requests | lines | memory | L2 | L1 | issue | predicted, us |")
    print("|---" * 11 + "|")
    for case in CASES:
        if arguments.case in case.name:
            row = run_case(kernels, case, arguments.blocks)
            times = (row.memory_us, row.l2_us, row.l1_us, row.issue_us)
            print(
                f"| {case.name} | `{row.kernel}` | {row.resources.registers} | {row.instructions:.0f} "
                f"| {row.requests:.1f} | {row.lines:.1f} | {' | '.join(f'{time:.1f}' for time in times)} "
                f"| **{row.predicted_us:.1f}** |",
                flush=True,
            )
            if arguments.opcodes:
                print("  ", ", ".join(f"{name} {count:.1f}" for name, count in row.by_opcode.items()))


if __name__ == "__main__":
    main()
