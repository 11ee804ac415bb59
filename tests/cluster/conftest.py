"""Clusters of their own, with token authentication: started and stopped by their processes."""

import gc
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LONGEST_S = 400


@dataclass(frozen=True)
class Head:
    """A head node: where jobs are submitted, and the environment of a client that may."""

    address: str
    env: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command of a client, in the repository's root."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            env={**self.env, "RAY_ADDRESS": self.address},
            cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=False,
        )  # fmt: skip


StartHead = Callable[..., Head]


@pytest.fixture
def start_head() -> Iterator[StartHead]:
    """`start_head(cpus=…, nodes=…)`: a head, and nodes of one CPU that have joined it, or with
    `autoscaling=…`, a configuration without its provider, that join when there is work."""
    with ExitStack() as stack:
        yield lambda **wanted: stack.enter_context(_cluster(**wanted))
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # Ray's client of jobs leaves its sockets to be collected, in any later test


@contextmanager
def _cluster(
    *, cpus: int, nodes: int = 0, autoscaling: dict[str, Any] | None = None
) -> Iterator[Head]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONPATH"))}
    environment = kept | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    gcs, dashboard, client = free_port(), free_port(), free_port()
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}"]
    with (
        # the sockets in it may have paths of at most 107 bytes
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        ExitStack() as running,
    ):
        head += [f"--ray-client-server-port={client}", f"--temp-dir={folder}"]
        if autoscaling is not None:
            provider = {
                "type": "fake_multinode",
                "gcs_address": f"127.0.0.1:{gcs}",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            }
            path = Path(folder) / "autoscaling.json"
            path.write_text(json.dumps({**autoscaling, "provider": provider}), encoding="utf-8")
            head += [f"--autoscaling-config={path}"]
            environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        running.enter_context(_node(head, cpus, environment))
        for _ in range(nodes):
            running.enter_context(_node([f"--address=127.0.0.1:{gcs}"], 1, environment))
        yield Head(f"http://127.0.0.1:{dashboard}", environment)


@contextmanager
def _node(arguments: list[str], cpus: int, env: dict[str, str]) -> Iterator[None]:
    """A node that runs until the end, when the processes that it started are stopped."""
    agent = f"--dashboard-agent-listen-port={free_port()}"
    memory = f"--object-store-memory={128 << 20}"
    with subprocess.Popen(
        [str(BIN / "ray"), "start", "--block", f"--num-cpus={cpus}", agent, memory, *arguments],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = ""
        try:
            while "Ray runtime started" not in said:
                line = process.stdout.readline()
                assert line, f"ray start {' '.join(arguments)}:\n{said}"
                said += line
            yield
        finally:
            # the nodes of the fake provider outlive the head that started them
            started = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.communicate(timeout=60)
            for child in psutil.wait_procs(started, timeout=0)[1]:
                child.kill()
            psutil.wait_procs(started, timeout=60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
