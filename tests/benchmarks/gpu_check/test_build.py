"""What is built before the steps: an installed plugin library is copied whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu_check import build
from stn_infer import plugin


def test_the_library_that_registers_an_installed_one_is_copied_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plugin.available():
        pytest.skip("the plugin library is not built")
    library = tmp_path / "plugins" / "libstn_plugins.so"
    ran: list[list[str]] = []
    monkeypatch.setattr(build, "LIBRARY", library)
    monkeypatch.setattr(build, "PROGRAMS", library.parent / "tests")
    monkeypatch.setattr(build, "_run", ran.append)
    build.build("native", cuda=False, library=False)
    installed = plugin.library_path()
    for name in ("libstn_plugins.so", "libstn_plugins_register.so"):
        assert (library.parent / name).read_bytes() == installed.with_name(name).read_bytes()
    assert all("-o" in command for command in ran) and len(ran) == 3, "only the programs are compiled"
