"""`make bench-data`: the data plane beside its peers, on the same files in the same run.

Every run is a process of its own, one at a time, the peers in turn, several rounds; the median
counts. What starts an engine, and a first run of the same work on a hundred thousand rows, are
not timed. All must count the same. Prints tables, then one line of JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from models.data.buckets import count_for
from tests.bench import raw
from tests.bench.peers.steps import SMALL_BUCKETS

PEERS = {
    "ingest": {"duckdb": 1.0, "pyspark": 6.0, "daft": 2.0},
    "snapshot": {"polars": 0.85, "pyspark": 5.0},
}
OURS = "raycredit"
SMALL = 100_000
NODES_GOAL = 1.6  # two nodes of a core beside one
Run = dict[str, Any]


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="make bench-data", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows that all work on")
    large = "numbers of rows that raycredit alone ingests"
    parser.add_argument("--large", type=int, nargs="*", default=[], help=large)
    parser.add_argument("--rounds", type=int, default=3)
    jobs = [*PEERS, "nodes"]
    parser.add_argument("--jobs", nargs="*", default=jobs, choices=jobs)
    parser.add_argument("--folder", type=Path, help="where to keep the raw rows for another time")
    parser.add_argument("--out", type=Path, help="a file for the line of JSON as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(args.folder or Path(temporary), Path(temporary))
        result: Run = {"rows": args.rows, "rounds": args.rounds}
        for job in [job for job in args.jobs if job in PEERS]:
            result[job] = bench.compare(job, args.rows, args.rounds)
            show(job, result[job])
        if "nodes" in args.jobs:
            result["nodes"] = bench.nodes(args.rows, args.rounds)
            show_nodes(result["nodes"])
        if args.large:
            result["large"] = bench.large(args.rows, args.large)
            show_large(result["large"])
    line = json.dumps(result)
    if args.out:
        args.out.write_text(line + "\n", encoding="utf-8")
    print(line)


class Bench:
    """Runs of peers. `kept` holds raw rows, `scratch` all that is removed."""

    def __init__(self, kept: Path, scratch: Path) -> None:
        self.kept, self.scratch = kept, scratch

    def compare(self, job: str, rows: int, rounds: int) -> Run:
        """Peer → median seconds and rate, and the most memory of a process."""
        peers = [OURS, *PEERS[job]]
        small, source = (self._input(job, n) for n in (SMALL, rows))
        runs: dict[str, list[Run]] = {peer: [] for peer in peers}
        for number in range(rounds):
            for peer in peers:
                runs[peer].append(self._run(f"{job}_{peer}", small, source, count_for(rows)))
                say(f"{job}, round {number + 1}, {peer}: {runs[peer][-1]['seconds']:.1f} s")
        counts = {peer: several[0]["counts"] for peer, several in runs.items()}
        assert all(one == counts[OURS] for one in counts.values()), f"they disagree: {counts}"
        return {peer: _median(several, rows) | counts[peer] for peer, several in runs.items()}

    def large(self, few: int, sizes: Sequence[int]) -> Run:
        """One ingest of each size, and its rate beside those of few, before them and after."""
        runs = []
        for rows in (few, *sizes, few):
            runs.append(self._alone(rows))
            say(f"large, {rows:,} rows: {runs[-1]['seconds']:.1f} s")
        beside = _median([runs[0], runs[-1]], few)
        large = [
            _median([run], rows) | run["counts"] | {"spilled_bytes": run["spilled_bytes"]}
            for rows, run in zip(sizes, runs[1:-1], strict=True)
        ]
        for one in large:
            one["rate_ratio"] = one["rows_per_s"] / beside["rows_per_s"]
        return {"beside": beside, "runs": large}

    def nodes(self, rows: int, rounds: int) -> Run:
        """The ingest on one node of one core and on two, in turn."""
        runs: dict[int, list[Run]] = {1: [], 2: []}
        for number in range(rounds):
            for count, several in runs.items():
                several.append(self._alone(rows, {"RAYCREDIT_BENCH_NODES": str(count)}))
                say(f"nodes, round {number + 1}, {count}: {several[-1]['seconds']:.1f} s")
        one, two = (_median(several, rows) for several in runs.values())
        return {"one": one, "two": two, "ratio": two["rows_per_s"] / one["rows_per_s"]}

    def _alone(self, rows: int, environment: Mapping[str, str] | None = None) -> Run:
        """Our own ingest."""
        small, source = self._input("ingest", SMALL), self._input("ingest", rows)
        return self._run(f"ingest_{OURS}", small, source, count_for(rows), environment)

    def _input(self, job: str, rows: int) -> Path:
        """The raw rows, or for a snapshot what an ingest made of them."""
        source = self.kept / f"raw-{rows}"
        raw.write(source, rows)
        if job == "ingest":
            return source
        made = self.scratch / f"ingested-{rows}"
        if not made.exists():
            out = self.scratch / "out"
            buckets = SMALL_BUCKETS if rows == SMALL else count_for(rows)
            _call(f"ingest_{OURS}", self._input("ingest", SMALL), source, out, buckets)
            (out / "whole").rename(made)
            shutil.rmtree(out)
        return made

    def _run(
        self,
        peer: str,
        small: Path,
        source: Path,
        buckets: int,
        environment: Mapping[str, str] | None = None,
    ) -> Run:
        """A run whose output is removed."""
        out = self.scratch / "out"
        try:
            return _call(peer, small, source, out, buckets, environment)
        finally:
            shutil.rmtree(out, ignore_errors=True)


def _call(
    peer: str,
    small: Path,
    source: Path,
    out: Path,
    buckets: int,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """What a peer prints of itself, run in a process of its own."""
    paths = [str(path) for path in (small, source, out)]
    own = Path(".bench") / peer.rpartition("_")[2] / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    command = [python, "-m", f"tests.bench.peers.{peer}", *paths, str(buckets)]
    own_environment = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own_environment)
    if done.returncode:
        raise SystemExit(f"{peer} failed:\n{done.stderr[-3000:]}")
    run: Run = json.loads(done.stdout.splitlines()[-1])
    return run


def _median(runs: Sequence[Run], rows: int) -> Run:
    seconds = statistics.median(run["seconds"] for run in runs)
    return {
        "seconds": round(seconds, 2),
        "rows_per_s": round(rows / seconds),
        "peak_gib": round(max(run["peak_gib"] for run in runs), 2),
        "rows": rows,
        "all_seconds": [round(run["seconds"], 2) for run in runs],
    }


def show(job: str, runs: Run) -> None:
    """A job's figures as a table."""
    table = Table(job, "raw rows/s", "seconds", "peak GiB a process", "raycredit is", "goal")
    for peer, run in runs.items():
        ratio = f"{runs[OURS]['rows_per_s'] / run['rows_per_s']:.2f} ×" if peer != OURS else ""
        goal = f"≥ {PEERS[job][peer]:g} ×" if peer != OURS else ""
        numbers = f"{run['rows_per_s']:,}", f"{run['seconds']:.1f}", f"{run['peak_gib']:.2f}"
        table.add_row(peer, *numbers, ratio, goal)
    Console(width=100).print(table)


def show_large(result: Run) -> None:
    """The figures of many rows."""
    few = f"of its rate at {result['beside']['rows']:,}"
    table = Table("ingest of", "rows/s", "seconds", "peak GiB a process", "spilled", few)
    for run in result["runs"]:
        goal = " (goal ≥ 0.9)" if run["rows"] > result["beside"]["rows"] else ""
        table.add_row(
            f"{run['rows']:,} rows",
            f"{run['rows_per_s']:,}",
            f"{run['seconds']:.1f}",
            f"{run['peak_gib']:.2f} (goal ≤ 1.5)",
            f"{run['spilled_bytes']:,} B",
            f"{run['rate_ratio']:.2f} ×{goal}",
        )
    Console(width=100).print(table)


def show_nodes(run: Run) -> None:
    """One node of one core beside two."""
    table = Table("nodes of one core", "rows/s", "seconds", "of one node's rate")
    for name in ("one", "two"):
        ratio = f"{run['ratio']:.2f} × (goal ≥ {NODES_GOAL:g})" if name == "two" else ""
        table.add_row(name, f"{run[name]['rows_per_s']:,}", f"{run[name]['seconds']:.1f}", ratio)
    Console(width=100).print(table)


def say(line: str) -> None:
    """A line of progress, apart from the result."""
    print(f"bench-data: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
