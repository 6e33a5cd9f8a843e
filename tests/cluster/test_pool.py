from __future__ import annotations

import pytest

from stn_infer.cluster.pool import told
from stn_infer.errors import ClusterError, ModelError, StnInferError
from tests.support.ray_standin import RayError


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (RayError("a task failed", ModelError("no such provider")), ModelError, "^no such provider$"),
        (
            RayError("failed to import\nModuleNotFoundError: No module named 'stn_infer'"),
            ClusterError,
            r"a worker cannot import stn_infer; install stn-infer \S+ on all nodes",
        ),
        (RayError("a task failed\nKeyError: 'x'", KeyError("x")), ClusterError, "^the cluster failed: a task failed"),
    ],
)
def test_what_ray_raises_is_told_in_one_line(error: RayError, expected: type[StnInferError], message: str) -> None:
    found = told(error)
    assert type(found) is expected and "\n" not in str(found)
    with pytest.raises(expected, match=message):
        raise found
