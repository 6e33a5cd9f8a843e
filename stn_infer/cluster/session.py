"""Connecting to a Ray cluster, or starting one on this machine for the time of a job."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from stn_infer.errors import ClusterError, MissingDependencyError, UsageError, one_line
from stn_infer.extras import install
from stn_infer.printing import counted
from stn_infer.quiet import no_stderr

LOCAL = "local"

_STORE = 128 << 20  # bytes of the object store of a local cluster: it holds the names of inputs, and the model
_CONNECT_SECONDS = 5
_SILENT = logging.CRITICAL + 1
# A local cluster listens on this machine only, reports to nobody, leaves the GPUs that are visible as they are, and is
# quiet. Its workers have the priority of the command: Ray would give them a much lower one.
_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_worker_niceness": "0",
}


def check_address(address: str) -> None:
    """Check the form of a cluster's address.

    Raises:
        UsageError: it is neither ``local``, ``auto`` nor ``HOST:PORT``.
    """
    if address.startswith("ray://"):
        raise UsageError(
            f"{address} is an address of Ray Client, which is not supported; run the command on a node of the cluster, "
            "with --ray=auto or HOST:PORT"
        )
    if address not in (LOCAL, "auto") and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/@]+):\d{1,5}", address):
        raise UsageError(
            f"expected the cluster's address as HOST:PORT or auto, not {address!r}; without an address write --ray "
            "after the inputs, or --ray=local"
        )


@contextlib.contextmanager
def connected(address: str, model_bytes: int = 0) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster for the time of the block.

    A connection that the program has made already is used, whatever the address.

    Args:
        address: ``local`` starts a cluster on this machine and stops it; ``auto`` is the one that runs here;
            ``HOST:PORT`` is that of its head.
        model_bytes: what a local cluster holds beside the names of inputs.

    Raises:
        UsageError: the address is malformed.
        MissingDependencyError: Ray is not installed.
        ClusterError: the cluster cannot be reached or started.
    """
    check_address(address)
    with _environment():
        try:
            import ray
        except ImportError:
            raise MissingDependencyError(f"--ray needs Ray, which is not installed; {install('ray')}") from None
        with _quiet():
            if ray.is_initialized():
                yield ray
                return
            own: dict[str, Any] = {}
            if address == LOCAL:
                own = {
                    "num_cpus": len(os.sched_getaffinity(0)),
                    "object_store_memory": _STORE + 2 * model_bytes,
                    "include_dashboard": False,
                }
            elif ":" in address:
                _reach(address)
            _connect(ray, address, own)
            try:
                yield ray
            finally:
                ray.shutdown()


def _connect(ray: Any, address: str, own: Mapping[str, Any]) -> None:
    """Connect to a cluster, or start one with the options ``own``, twice if this takes longer than Ray waits."""
    for last in (False, True) if own else (True,):
        try:
            with _own_signals(), no_stderr():
                ray.init(address, log_to_driver=False, logging_level=_SILENT, configure_logging=False, **own)
            return
        except Exception as error:  # ConnectionError, RuntimeError, ValueError, errors of gRPC
            ray.shutdown()
            if last:
                doing = "start a cluster on this machine" if own else f"connect to the Ray cluster {address}"
                raise ClusterError(f"cannot {doing}: {one_line(error)}") from error


def slots(ray: Any, cpus: int | None, gpus: int) -> tuple[int, int]:
    """How many workers have room in the cluster, and the CPUs of each.

    Args:
        ray: connected.
        cpus, gpus: of each worker; with GPUs, None is an equal share of a node's CPUs, else 1.

    Raises:
        ClusterError: there is no node with room for one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if cpus is None:
        shares = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if gpus and node.get("GPU", 0) >= 1]
        cpus = max(1, min(shares, default=1))
    found = sum(
        int(min(node.get("CPU", 0) // cpus, *([node.get("GPU", 0) // gpus] if gpus else []), 1 << 30)) for node in nodes
    )
    if not found:
        wanted = f"{cpus} CPU{'s' if cpus > 1 else ''}" + (f" and {gpus} GPU" if gpus else "")
        raise ClusterError(
            f"no node of the cluster has {wanted}; it has {counted(len(nodes), 'node')}, see `ray status`"
        )
    return found, cpus


def _reach(address: str) -> None:
    """Fails at once where Ray would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"cannot connect to the Ray cluster {address}: {one_line(error)}; `ray start --head` prints the address"
        ) from None


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Ray reads these when it is imported, and passes them on to what it starts; it sets others itself."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in before})
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_") and name not in before]:
            del os.environ[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray prints what happens to workers; the job tells what became of each input."""
    import ray._private.worker as printing

    logger = logging.getLogger("ray")
    level = logger.level
    printed = getattr(printing, "_worker_logs_enabled", None)  # of what a raylet reports, whatever log_to_driver is
    try:
        logger.setLevel(_SILENT)
        if printed is not None:
            printing._worker_logs_enabled = False
        yield
    finally:
        logger.setLevel(level)
        if printed is not None:
            printing._worker_logs_enabled = printed


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps the handlers of signals: Ray installs one for SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
