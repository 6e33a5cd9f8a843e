"""The CUDA kernels' machine code for sm_90: what it must not contain, and its instructions, counted in a simulator.

The kernels are compiled once for all tests. Results of the simulated blocks are compared with float64.
"""

from __future__ import annotations

import re
import shutil
import sysconfig
from pathlib import Path

import pytest

from benchmarks.sass.cases import Case
from benchmarks.sass.count import Kernels, run_case

pytestmark = pytest.mark.slow

_PHOTOS, _FEATURES = (64, 3, 224, 224), (256, 64, 28, 28)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    beside = any(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm"))
    if shutil.which("nvcc") is None or not (shutil.which("nvdisasm") or beside):
        pytest.skip("needs nvcc and nvdisasm (pip install nvidia-cuda-nvdisasm)")
    return Kernels(tmp_path_factory.mktemp("sass"))


def test_no_kernel_spills_and_the_frequent_ones_leave_room_for_eight_blocks(kernels: Kernels) -> None:
    assert len(kernels.resources) > 60
    assert {name for name, used in kernels.resources.items() if used.spilled or used.stack} == set()
    frequent = {
        name: used.registers
        for name, used in kernels.resources.items()
        if not re.search(r"basis|long|3, [18]>$|2, 16>$|Planes<\w+, int, 0, true>, 2, [14]>$", name)
    }
    assert len(frequent) > 30
    assert {name: count for name, count in frequent.items() if count > 64} == {}


def test_packs_are_read_and_written_in_one_access(kernels: Kernels) -> None:
    packed = {name: code for name, code in kernels.programs.items() if re.search(r"Packs<\w+, [48]>", name)}
    assert len(packed) > 10
    for name, code in packed.items():
        stores = [i for i in code.instructions if i.opcode == "STG"]
        assert stores and all("128" in i.modifiers for i in stores), name
        # other sizes are theta's, a grid's or a basis'
        assert sum("128" in i.modifiers for i in code.instructions if i.opcode == "LDG") >= 1, name


def test_images_are_read_through_the_read_only_path(kernels: Kernels) -> None:
    """Only what a padded pixel reads again from theta is not."""
    for name, code in kernels.programs.items():
        others = [i for i in code.instructions if i.opcode == "LDG" and "CONSTANT" not in i.modifiers]
        assert len(others) <= (6 if name.startswith("affine") else 0), name


@pytest.mark.parametrize(
    ("case", "kernel", "most"),
    [
        (Case(_PHOTOS), "affine_kernel<Planes<float, int, 3, true>", 110),
        (Case(_PHOTOS, "float16"), "affine_kernel<Planes<Half, int, 3, true>", 125),
        (Case((1024, 1, 28, 28)), "affine_kernel<Planes<float, int, 1, true>", 150),
        (Case(_FEATURES), "affine_kernel<Planes<float, int, 0, true>", 3300),
        (Case(_FEATURES, channels_last=True), "affine_kernel<Packs<float, 4>", 1800),
        (Case(_FEATURES, "float16", channels_last=True), "affine_kernel<Packs<Half, 8>", 1500),
        (Case(_PHOTOS, channels_last=True), "affine_kernel<Packs<float, 1>", 220),
        (Case(_PHOTOS, kind="projective"), "column_kernel<Planes<float, int, 3, true>, 2, 4>", 190),
        (Case(_PHOTOS, mode="nearest"), "column_kernel<Planes<float, int, 3, true>, 2, 1>", 110),
        (Case(_PHOTOS, kind="grid"), "column_kernel<Planes<float, int, 3, true>, 2, 4>", 135),
        (Case(_PHOTOS, kind="basis", rows=19), "basis_kernel<Planes<float, int, 3, true>", 330),
        (Case((4096, 1, 4, 4)), "affine_kernel<Planes<float, int, 1, true>", 260),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_instructions_per_32_pixels(kernels: Kernels, case: Case, kernel: str, most: int) -> None:
    row = run_case(kernels, case, blocks=2)
    assert row.kernel.startswith(kernel)
    assert 20 < row.instructions <= most
    assert row.requests > 1
