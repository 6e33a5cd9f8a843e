from __future__ import annotations

import os
import re
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from stn_infer.cluster.session import check_address, connected, slots
from stn_infer.errors import ClusterError, MissingDependencyError, UsageError
from stn_infer.extras import install
from tests.support import ray_standin


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.1:6379", "head.example.org:6379", "[::1]:6379"])
def test_addresses(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize("address", ["", "photos/", "model.onnx", "10.0.0.1", "host:port", "http://host:80", "a@b:1"])
def test_what_is_not_an_address(address: str) -> None:
    with pytest.raises(UsageError, match=r"address as HOST:PORT or auto, not .*write --ray after the inputs"):
        check_address(address)


def test_ray_client_is_not_supported() -> None:
    with pytest.raises(UsageError, match="run the command on a node of the cluster"):
        check_address("ray://head:10001")


def test_without_ray_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = f"--ray needs Ray, which is not installed; {install('ray')}"
    with pytest.raises(MissingDependencyError, match=f"^{re.escape(message)}$"), connected("local"):
        pass


def test_a_cluster_that_does_not_listen_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_standin.install(monkeypatch)
    monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        message = rf"cannot connect to the Ray cluster {address}: .*refused"
        with pytest.raises(ClusterError, match=message), connected(address):
            pass


def test_a_cluster_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_standin.install(monkeypatch)

    tried: list[str] = []

    def init(address: str, **options: Any) -> None:
        tried.append(address)
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
        raise ConnectionError("no Ray instance\nhere")

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: False)
    monkeypatch.setattr(sys.modules["ray"], "init", init, raising=False)
    message = r"^cannot connect to the Ray cluster auto: no Ray instance here$"
    with pytest.raises(ClusterError, match=message), connected("auto"):
        pass
    assert len(tried) == 1
    with pytest.raises(ClusterError, match="cannot start a cluster on this machine"), connected("local"):
        pass
    assert len(tried) == 3, "a busy machine gets a second try"
    assert "RAY_AUTH_MODE" not in os.environ and "RAY_USAGE_STATS_ENABLED" not in os.environ


def nodes(*resources: dict[str, float]) -> Any:
    return SimpleNamespace(nodes=lambda: [{"Alive": it.get("CPU", 0) >= 0, "Resources": it} for it in resources])


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "expected"),
    [
        ([{"CPU": 4.0}, {"CPU": 3.0}], None, 0, (7, 1)),
        ([{"CPU": 4.0}, {"CPU": 3.0}, {"CPU": -1.0}], 2, 0, (3, 2)),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 64.0}], None, 1, (4, 4)),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 6.0, "GPU": 2.0}], None, 1, (6, 3)),
        ([{"CPU": 16.0, "GPU": 4.0}], 8, 1, (2, 8)),
    ],
)
def test_workers_that_fit(
    resources: list[dict[str, float]], cpus: int | None, gpus: int, expected: tuple[int, int]
) -> None:
    assert slots(nodes(*resources), cpus, gpus) == expected


def test_a_cluster_without_room_for_a_worker() -> None:
    with pytest.raises(ClusterError, match="no node of the cluster has 1 CPU and 1 GPU; it has 1 node,"):
        slots(nodes({"CPU": 4.0}), None, 1)
    with pytest.raises(ClusterError, match="no node of the cluster has 8 CPUs;"):
        slots(nodes({"CPU": 4.0}, {"CPU": 7.0}), 8, 0)
