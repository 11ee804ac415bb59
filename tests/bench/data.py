"""`make bench-data`: the data plane beside its peers, on the same files in the same run.

Every run is a process of its own, one at a time, peers in turn, several rounds. What starts an
engine is not timed. All must count the same rows. Prints a table, then one line of JSON.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import raw

INGEST = ("raycredit", "duckdb", "pyspark", "daft")
GOALS = {"duckdb": 1.0, "pyspark": 6.0, "daft": 2.0}
ROWS_A_BUCKET = 800_000
Run = dict[str, Any]


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="make bench-data", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows that all ingest")
    parser.add_argument("--large", type=int, default=0, help="rows that raycredit alone ingests")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=INGEST, choices=INGEST)
    parser.add_argument(
        "--folder", type=Path, help="where to keep the files; else they are removed"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        result: Run = {"rows": args.rows, "rounds": args.rounds}
        result["ingest"] = ingest(folder, args.rows, args.rounds, args.peers)
        if args.large:
            (large,) = ingest(folder, args.large, 1, ["raycredit"]).values()
            ratio = large["rows_per_s"] / result["ingest"]["raycredit"]["rows_per_s"]
            result["large"] = {"rows": args.large, **large, "rows_per_s_ratio": ratio}
    show(result)
    print(json.dumps(result))


def ingest(folder: Path, rows: int, rounds: int, peers: Sequence[str]) -> Run:
    """Peer → median seconds and rate, and the most memory of a process."""
    source = folder / f"raw-{rows}"
    say(f"{rows:,} raw rows")
    raw.write(source, rows)
    buckets = 1 << max(0, (rows // ROWS_A_BUCKET - 1).bit_length())
    runs: dict[str, list[Run]] = {peer: [] for peer in peers}
    for number in range(rounds):
        for peer in peers:
            runs[peer].append(timed(f"ingest_{peer}", source, folder / "out", buckets))
            say(f"round {number + 1}, {peer}: {runs[peer][-1]['seconds']:.1f} s")
    counts = [run["counts"] for several in runs.values() for run in several]
    assert all(one == counts[0] for one in counts), f"the peers disagree: {counts}"
    return {peer: {**_median(several, rows), **counts[0]} for peer, several in runs.items()}


def timed(peer: str, source: Path, out: Path, buckets: int) -> Run:
    """One run of a peer in a process of its own, its output removed."""
    out.mkdir(parents=True)
    command = [sys.executable, "-m", f"tests.bench.peers.{peer}", str(source), str(out)]
    try:
        done = subprocess.run([*command, str(buckets)], capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(out)
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
        "all_seconds": [round(run["seconds"], 2) for run in runs],
    }


def show(result: Run) -> None:
    """The figures as a table."""
    table = Table("ingest", "rows/s", "seconds", "peak GiB", "raycredit is", "goal")
    ours = result["ingest"]["raycredit"]["rows_per_s"]
    for peer, run in result["ingest"].items():
        ratio = "" if peer == "raycredit" else f"{ours / run['rows_per_s']:.2f} ×"
        goal = f"≥ {GOALS[peer]:.1f} ×" if peer in GOALS else ""
        numbers = f"{run['rows_per_s']:,}", f"{run['seconds']:.1f}", f"{run['peak_gib']:.2f}"
        table.add_row(peer, *numbers, ratio, goal)
    if "large" in result:
        large = result["large"]
        table.add_row(
            f"raycredit, {large['rows']:,} rows",
            f"{large['rows_per_s']:,}",
            f"{large['seconds']:.1f}",
            f"{large['peak_gib']:.2f}",
            f"{large['rows_per_s_ratio']:.2f} × its rate at {result['rows']:,}",
            "≥ 0.9 ×; 1.5 GiB",
        )
    Console(width=110).print(table)


def say(line: str) -> None:
    """A line of progress, apart from the result."""
    print(f"bench-data: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
