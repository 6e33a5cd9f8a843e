"""A cluster of several nodes on this machine that loses two of them during a job: python -m tests.support.ray_nodes.

Arguments: the model, the inputs and the output folder. Prints the summary as JSON, and how often nodes were lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any

# what a cluster's nodes are started with: nothing listens beyond this machine
os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")

_STORE = 80 << 20
# a lost node is noticed in two seconds
_HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 2}


def main(model: str, inputs: str, output: str) -> None:
    from ray.cluster_utils import Cluster

    from stn_infer.api.run import run

    head = {"num_cpus": 0, "object_store_memory": _STORE, "include_dashboard": False, "_system_config": _HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=_STORE) for _ in range(2)]
    lost: list[str] = []

    def progress(done: int, total: int) -> None:
        if done > total / 5 and not lost:
            raylet: Any = nodes[0].all_processes["raylet"][0].process
            os.kill(raylet.pid, signal.SIGKILL)
            lost.append("killed")
        if done > total / 2 and len(lost) == 1:
            lost.append("removed")
            cluster.add_node(num_cpus=1, object_store_memory=_STORE)
            cluster.remove_node(nodes[1], allow_graceful=False)

    try:
        summary = run(model, inputs, output, ray=cluster.address, preprocess="0..1", shard_rows=64, progress=progress)
        print(json.dumps({"ok": summary.ok, "failed": summary.failed, "total": summary.total, "lost": lost}))
    finally:
        with contextlib.suppress(Exception):  # a node that was killed
            cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
