"""What the kernels' tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.plugin_cases import ISAS, library_limited_to


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Each instruction set that this processor has; the library runs its kernels."""
    folder = Path(tmp_path_factory.getbasetemp())
    with library_limited_to(request.param, folder) as library:
        if library.stn_cpu_isa().decode() != request.param:
            pytest.skip(f"this processor has no {request.param}")
        yield request.param
