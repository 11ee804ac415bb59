"""`make bench-serve`: the endpoint's latency and throughput, beside the same model in bare FastAPI.

A simulated marketplace as the demo's, a model of one epoch, and one request a user: the last events
of its history, its profile and a proposed amount, sent over and over by connections that each wait
for their answer. Each server runs alone, in turn, several rounds, with as many processes of one
thread; the load comes from the same machine. Both must answer the same. Prints a table, then one
line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from models.data.tasks import midnight
from ray_jobs import jobs
from ray_jobs.cluster import connected
from ray_jobs.config import Config
from ray_jobs.serving.client import post, requests_of
from tests.bench.parts.load import load
from tests.bench.parts.marketplace import config_in

OURS, BARE = "raycredit", "fastapi"
ALIKE = 20  # requests whose answers are compared
TOLERANCE = 1e-3  # of a score: what is scored beside a request may move a float32's last bits
P50_GOAL, RATE_GOAL = 1.25, 1.5  # times the bare one's, at the fewest and the most connections
Run = dict[str, Any]


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="make bench-serve", description=__doc__)
    parser.add_argument("--users", type=int, default=1000, help="of the simulated marketplace")
    parser.add_argument("--requests", type=int, default=200, help="bodies, each of another user")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes that score")
    args = parser.parse_args()
    runs: dict[tuple[str, int], list[Run]] = {}
    answers: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        config, bodies = prepare(folder, args.users, args.requests)
        token = os.environ[config.serve.token_env]
        for number in range(args.rounds):
            for server in (OURS, BARE):
                with serving(server, folder, args.workers) as url:
                    answers[server] = [
                        post(url, token, json.loads(body))["score"] for body in bodies[:ALIKE]
                    ]
                    for count in args.connections:
                        run = load(url, token, bodies, count, args.seconds).figures()
                        runs.setdefault((server, count), []).append(run)
                        say(f"round {number + 1}, {server}, {count} at once: {run}")
    apart = max(abs(a - b) for a, b in zip(*answers.values(), strict=True))
    assert apart <= TOLERANCE, f"scores differ by {apart}"
    result = {
        "events": statistics.mean(len(json.loads(body)["events"]) for body in bodies),
        "bytes": statistics.mean(map(len, bodies)),
        "workers": args.workers,
        "servers": {
            server: {
                count: {key: statistics.median(run[key] for run in several) for key in several[0]}
                for (name, count), several in runs.items()
                if name == server
            }
            for server in (OURS, BARE)
        },
    }
    show(result)
    print(json.dumps(result))


def prepare(folder: Path, users: int, requests: int) -> tuple[Config, list[bytes]]:
    """A champion in `folder`, and the requests."""
    config = config_in(folder, users, epochs=1, frozen_epochs=0)
    with connected(config.cluster):
        jobs.run_simulate(config)
        jobs.run_ingest(config)
        jobs.run_train(config, None)
        jobs.run_evaluate(config)
        jobs.run_promote(config, None, "bench-serve")
        tables = jobs.tables(config)
        identities, profiles = tables.read("identities"), tables.read("users")
        assert identities is not None
        events = pl.concat([tables.events(bucket) for bucket in tables.buckets])
    as_of = midnight(config.split.test.last)
    known = identities.join(events.filter(pl.col("event_time") < as_of), on="user_key", how="semi")
    users = known.select("user_key", "user_id").unique("user_key").sort("user_key")
    some = dict(users.head(requests).iter_rows())
    bodies = requests_of(some, events, profiles, as_of)
    proposed = {"proposed": {"amount": "100"}}
    return config, [json.dumps(body | proposed).encode() for body in bodies]


@contextmanager
def serving(server: str, folder: Path, workers: int) -> Iterator[str]:
    """A server in a process of its own; its URL while the block runs."""
    command = [sys.executable, "-m", f"tests.bench.peers.serve_{server}", str(folder), str(workers)]
    with (folder / f"{server}.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            lines = (line.strip() for line in process.stdout)
            url = next((line for line in lines if line.startswith("http://")), None)
            if url is None:
                end = (folder / f"{server}.log").read_text(encoding="utf-8")[-3000:]
                raise SystemExit(f"bench-serve: {server} did not start:\n{end}")
            yield url
        finally:
            process.stdin.close()
            process.wait()


def show(result: Run) -> None:
    """The figures as a table."""
    ours, bare = (result["servers"][name] for name in (OURS, BARE))
    counts = list(ours)
    goals = {
        counts[0]: ("p50_ms", f"p50 ≤ {P50_GOAL} ×"),
        counts[-1]: ("per_s", f"≥ {RATE_GOAL} ×"),
    }
    table = Table(
        "connections", "server", "requests/s", "p50 ms", "p95 ms", "p99 ms", "of the bare"
    )
    for count in counts:
        for name, run in ((OURS, ours[count]), (BARE, bare[count])):
            ratio = ""
            if name == OURS:
                key, goal = goals.get(count, ("per_s", ""))
                ratio = f"{run[key] / bare[count][key]:.2f} × {goal}".strip()
            figures = (f"{run[key]:.1f}" for key in ("per_s", "p50_ms", "p95_ms", "p99_ms"))
            table.add_row(str(count), name, *figures, ratio)
    Console(width=100).print(table)


def say(line: str) -> None:
    """A line of progress, apart from the result."""
    print(f"bench-serve: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
