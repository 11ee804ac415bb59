"""A Ray cluster of three nodes on this machine, in a process of its own: `two_nodes.py CPUS`.

The head runs no task; two workers have so many CPUs each. The first line out is the address; after
it, each line in is a command that is answered by one line, the pids of the worker nodes' raylets:
`nodes`, `kill PID` (that node, with all its processes, at once) and `add` (a node in its place).
The cluster ends with its input.
"""

import json
import sys

import psutil
from ray._private.node import Node
from ray.cluster_utils import Cluster

# that a node is gone is noticed after two seconds, not after sixteen; one that is only slow may
# take five seconds to answer
NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 400,
    "health_check_failure_threshold": 4,
    "health_check_timeout_ms": 5000,
}
STORE = 80 << 20  # bytes of each node's object store


def raylet_of(node: Node) -> int:
    """The pid of a node's raylet."""
    return int(node.all_processes["raylet"][0].process.pid)


def kill(cluster: Cluster, raylet: int) -> None:
    """Take a node away as a power cut does: its raylet, its agents and its workers."""
    (node,) = (n for n in cluster.worker_nodes if raylet_of(n) == raylet)
    below = psutil.Process(raylet).children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    for process in below:
        if process.is_running():
            process.kill()


def main(cpus: int) -> None:
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": NOTICE}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": STORE})
    print(cluster.address, flush=True)
    for _ in range(2):
        cluster.add_node(num_cpus=cpus, object_store_memory=STORE)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "kill":
            kill(cluster, int(arguments[0]))
        elif command == "add":
            cluster.add_node(num_cpus=cpus, object_store_memory=STORE)
        print(json.dumps(sorted(raylet_of(node) for node in cluster.worker_nodes)), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
