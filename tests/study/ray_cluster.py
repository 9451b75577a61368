"""A cluster of three raylets on this machine in its own process: the test kills its nodes by signals.

Prints one line of JSON: the address, and the raylets that may be killed. Runs until its input ends.
"""

import json
import sys

from ray.cluster_utils import Cluster

MIB = 2**20
QUICK = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}


def main() -> None:
    store = {"object_store_memory": 80 * MIB, "memory": 4096 * MIB}
    head = {**store, "num_cpus": 1, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    others = [cluster.add_node(num_cpus=1, **store) for _ in range(2)]
    cluster.wait_for_nodes()
    raylets = [node.all_processes["raylet"][0].process.pid for node in others]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
