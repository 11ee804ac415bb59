"""`make bench-train`: how fast a training is, and encoding texts, beside peers in the same run.

Every run is a process of its own, one at a time. Training: the demo's network on a simulated
marketplace, a first epoch to warm up and a second that counts, ranks of one thread. Texts: the
first reviews of Women's Clothing, encoded on two threads; that the encodings are worth the same
is seen by a logistic regression of the recommendation on them. Prints tables, then one line of
JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from models.nets.int8 import exact
from models.nets.text import encoder_path, load_tokenizer
from ray_jobs import jobs, snapshot
from ray_jobs.cluster import connected
from tests.bench.parts.encoding import REVIEWS, flops
from tests.bench.parts.marketplace import config_in
from tests.bench.peers.texts import MAX_TOKENS, THREADS

OURS = "raycredit"
OWN = [f"{OURS} {p}" for p in ("fp32", "int8", "bf16") if p != "int8" or exact()]
GOALS = {"sentence bf16": 1.5, "onnxruntime int8": 1.0, "openvino int8": 1.0}  # times as fast
PEERS = [*GOALS, "sentence fp32"]  # its better precision on a machine that is slow in bf16
JOBS = ("fit", "texts")
EPOCHS = 2
Run = dict[str, Any]


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="make bench-train", description=__doc__)
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), choices=JOBS)
    parser.add_argument("--users", type=int, default=1000, help="of the simulated marketplace")
    parser.add_argument("--texts", type=int, default=2000, help="reviews that are encoded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    args = parser.parse_args()
    result: Run = {"rounds": args.rounds}
    with tempfile.TemporaryDirectory() as scratch:
        if "fit" in args.jobs:
            result["fit"] = fit(Path(scratch), args.users, args.rounds)
            show_fit(result["fit"])
        if "texts" in args.jobs:
            result["texts"] = encode(Path(scratch), args.peers, args.texts, args.rounds)
            show_texts(result["texts"])
    print(json.dumps(result))


def fit(scratch: Path, users: int, rounds: int) -> Run:
    """Rows per second of one rank and of two, in a Ray Train job and in a bare loop."""
    runs: dict[str, list[Run]] = {"ray-1": [], "ray-2": [], "torchrun-2": []}
    data = scratch / "data"
    simulate(data, users)
    for number in range(rounds):
        for name, several in runs.items():
            kind, ranks = name.split("-")
            folder = scratch / f"{name}-{number}"
            folder.mkdir()
            for part in ("config.json", "snapshots"):
                (folder / part).symlink_to(data / part)
            several.append(_call([*fit_command(kind, ranks), str(folder)], threads=1))
            say(f"fit, round {number + 1}, {name}: {several[-1]['rows_per_s']:.0f} rows/s")
    median = {
        name: {key: statistics.median(run[key] for run in several) for key in several[0]}
        for name, several in runs.items()
    }
    rate = {name: run["rows_per_s"] for name, run in median.items()}
    return median | {
        "two_ranks_against_one": rate["ray-2"] / rate["ray-1"],
        "ray_train_against_torchrun": rate["ray-2"] / rate["torchrun-2"],
    }


def fit_command(kind: str, ranks: str) -> list[str]:
    """How a training is started, up to its folder."""
    if kind == "ray":
        return ["tests.bench.peers.fit_raycredit", ranks]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
    return [*launcher, "-m", "tests.bench.peers.fit_torchrun"]


def simulate(folder: Path, users: int) -> None:
    """A snapshot of the demo's marketplace, and the configuration of the trainings."""
    config = config_in(folder, users, epochs=EPOCHS, frozen_epochs=0)
    with connected(config.cluster):
        jobs.run_simulate(config)
        jobs.run_ingest(config)
        snapshot.snapshot(config, jobs.tables(config))


def encode(scratch: Path, peers: list[str], count: int, rounds: int) -> Run:
    """Texts per second of each peer, and what its encodings are worth."""
    if not REVIEWS.exists():
        raise SystemExit(f"bench-train: the reviews are not here: there is no {REVIEWS}")
    frame = pl.read_parquet(REVIEWS).drop_nulls("Review Text").head(count)
    texts, label = frame["Review Text"].to_list(), frame["Recommended IND"].to_numpy()
    (scratch / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    folder, out = encoder_path("minilm"), scratch / "encodings.npy"
    runs: dict[str, list[Run]] = {peer: [] for peer in (*OWN, *peers)}
    peaks: dict[str, list[float]] = {"bf16": [], "fp32": []}
    for number in range(rounds):
        for peer, several in runs.items():
            files = folder, str(scratch / "texts.json"), str(out)
            tool, _, precision = peer.partition(" ")
            command = [f"tests.bench.peers.encode_{tool}", *files, precision]
            several.append(_call(command, threads=THREADS, environment=tool))
            several[-1]["auc"] = worth(np.load(out), label)
            say(f"texts, round {number + 1}, {peer}: {several[-1]['seconds']:.1f} s")
        peaks["bf16"].append(matmul_rate(torch.bfloat16))
        peaks["fp32"].append(matmul_rate(torch.float32))
    tokens = load_tokenizer("minilm")(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    work = flops(Path(folder), map(len, tokens))
    seconds = {
        p: statistics.median(run["seconds"] for run in several) for p, several in runs.items()
    }
    return {
        "peers": {
            peer: {"texts_per_s": count / seconds[peer], "auc": several[0]["auc"]}
            for peer, several in runs.items()
        },
        "encoding_gflops": {p: work / seconds[p] / 1e9 for p in OWN},
        "matmul_gflops": {name: statistics.median(rates) / 1e9 for name, rates in peaks.items()},
    }


def worth(encoded: np.ndarray, label: np.ndarray) -> float:
    """AUC on the second half of a logistic regression fitted on the first."""
    half = len(label) // 2
    probe = LogisticRegression(C=10.0, max_iter=1000).fit(encoded[:half], label[:half])
    return float(roc_auc_score(label[half:], probe.decision_function(encoded[half:])))


def matmul_rate(kind: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    torch.set_num_threads(THREADS)
    size, seconds = 2048, []
    left, right = (torch.randn(size, size, dtype=kind) for _ in range(2))
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _call(command: list[str], threads: int, environment: str = OURS) -> Run:
    """What a module prints of itself, run in a process of its own, in its peer's environment."""
    own = Path(".bench") / environment / "bin" / "python"
    done = subprocess.run(
        [sys.executable if environment == OURS else str(own), "-m", *command],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    run: Run = json.loads(done.stdout.splitlines()[-1])
    return run


def show_fit(run: Run) -> None:
    """The figures of a training as a table."""
    table = Table("training", "measured", "goal")
    two = run["ray-2"]
    names = "ray-1", "ray-2", "torchrun-2"
    rates = ", ".join(f"{name} {run[name]['rows_per_s']:.0f}" for name in names)
    table.add_row("rows/s", rates, "")
    table.add_row("two ranks against one", f"{run['two_ranks_against_one']:.2f} ×", "≥ 1.7 ×")
    ratio = f"{run['ray_train_against_torchrun']:.2f} ×"
    table.add_row("Ray Train against torchrun", ratio, "≥ 0.95 ×")
    table.add_row("start-up of a run", f"{two['startup_s']:.1f} s", "≤ 8 s")
    table.add_row("to the end of the first step", f"{two['first_step_s']:.1f} s", "")
    table.add_row("waiting for data", f"{two['waiting']:.1%}", "≤ 3 %")
    table.add_row("padding of texts", f"{two['padding']:.1%}", "< 10 %")
    Console(width=100).print(table)


def show_texts(run: Run) -> None:
    """The figures of encoding as a table."""
    table = Table("encoding texts", "texts/s", "AUC", "raycredit is", "goal")
    for peer, one in run["peers"].items():
        tool, _, precision = peer.partition(" ")
        ours = run["peers"][f"{OURS} {precision}"]["texts_per_s"]
        ratio = f"{ours / one['texts_per_s']:.2f} ×" if tool != OURS else ""
        goal = f"≥ {GOALS[peer]:g} ×" if peer in GOALS else ""
        table.add_row(peer, f"{one['texts_per_s']:.0f}", f"{one['auc']:.4f}", ratio, goal)
    for own, reached in run["encoding_gflops"].items():
        for name, rate in run["matmul_gflops"].items():
            of = f"{own}, of a {name} matmul's {rate:.0f} GFLOP/s"
            goal = "≥ 70 %" if name == "bf16" else ""
            table.add_row(of, "", "", f"{reached / rate:.0%}", goal)
    Console(width=100).print(table)


def say(line: str) -> None:
    """A line of progress, apart from the result."""
    print(f"bench-train: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
