"""`make bench-tune`: what a search finds for the epochs it spends, and what a trial costs beside
its training.

Regret: every point of a space is trained once, epoch by epoch, on a small simulated marketplace.
Searches then look their epochs up in that table, so that each can be run with many seeds, and the
best point is known. All begin with the configuration's defaults. A search's regret is the loss of
the point it believes in, trained to the end, above that of the best point. Prints tables, then
one line of JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.pruners import HyperbandPruner
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, BertConfig, BertModel

from models.nets.fit import Loop
from models.nets.text import encoder_path
from ray_jobs import demo, jobs, snapshot, tune
from ray_jobs.checkpoint import History
from ray_jobs.cluster import connected
from ray_jobs.config import Config, load
from ray_jobs.feed import concurrency
from ray_jobs.frames import Frames
from ray_jobs.parallel import over
from ray_jobs.rank import Rank
from tuning.config import TuneConfig
from tuning.parameters import Choice
from tuning.search import Search, kept, load_study, open_study
from tuning.space import Point, Space, applied

EPOCHS = 9
SPACE = {
    "train.loop.learning_rate": Choice(values=(0.0003, 0.001, 0.003, 0.01, 0.03)),
    "network.width": Choice(values=(16, 32, 64)),
    "network.dropout": Choice(values=(0.0, 0.25, 0.5)),
    "train.loop.alone_weight": Choice(values=(0.0, 0.5)),
    "train.loop.batch_rows": Choice(values=(32, 128)),
}
BUDGETS = (0.25, 0.5, 1.0)
Losses = dict[str, list[float]]  # a point as JSON → the loss that is kept after each epoch
Regrets = list[float]  # after each epoch spent
Seek = Callable[["Bench", int], Regrets]


class Bench:
    """The table of losses, and searches over it."""

    def __init__(self, space: Space, losses: Losses, budget: int) -> None:
        self.space, self.losses, self.budget = space, losses, budget
        self.best = min(curve[-1] for curve in losses.values())

    def ours(self, seed: int, sampler: str = "tpe") -> Regrets:
        """The project's search, as `raycredit tune` runs it, one trial at a time."""
        config = TuneConfig.model_validate({"trials": 10_000, "sampler": sampler})
        study = open_study(InMemoryStorage(), config, {})
        search, spent = Search(study, self.space, config, EPOCHS, seed), _Spent(self)
        while spent.left and (job := search.next()) is not None:
            losses = self.losses[_name(job.point)]
            for count in range(1, EPOCHS + 1):
                spent.epoch(losses, count)
                epochs = [{"log_loss": loss, "best": True} for loss in losses[:count]]
                if search.report(job, 0, epochs):
                    break
            search.end(job)
        return spent.regrets

    def random(self, seed: int) -> Regrets:
        """Random search with the same early stopping."""
        return self.ours(seed, "random")

    def optuna(self, seed: int) -> Regrets:
        """Plain Optuna: its default sampler and its Hyperband pruner."""
        spent = _Spent(self)
        study = optuna.create_study(
            sampler=TPESampler(seed=seed),
            pruner=HyperbandPruner(min_resource=1, max_resource=EPOCHS, reduction_factor=3),
        )
        study.enqueue_trial(self.space.defaults())

        def objective(trial: optuna.Trial) -> float:
            point = self.space.draw(
                lambda path, _: trial.suggest_categorical(path, SPACE[path].values)
            )
            losses = self.losses[_name(point)]
            for count in range(1, EPOCHS + 1):
                spent.epoch(losses, count)
                trial.report(losses[count - 1], count)
                if not spent.left:
                    study.stop()
                    break
                if trial.should_prune():
                    raise optuna.TrialPruned
            return losses[count - 1]

        study.optimize(objective)
        return spent.regrets


class _Spent:
    """Epochs spent by a search, and its regret after each."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.regrets: Regrets = []
        self.believed = (float("inf"), float("inf"))  # best loss seen; that point's at the end

    @property
    def left(self) -> bool:
        return len(self.regrets) < self.bench.budget

    def epoch(self, losses: list[float], count: int) -> None:
        """Note one more epoch of a point."""
        if not self.left:
            return
        self.believed = min(self.believed, (losses[count - 1], losses[-1]))
        self.regrets.append(self.believed[1] - self.bench.best)


SEARCHES: dict[str, Seek] = {
    "raycredit": Bench.ours,
    "random + ASHA": Bench.random,
    "Optuna + Hyperband": Bench.optuna,
}


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="make bench-tune", description=__doc__)
    parser.add_argument("--users", type=int, default=800, help="of the simulated marketplace")
    parser.add_argument("--parameters", type=int, default=4, help="so many of the space's")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trainings", type=int, default=20, help="the budget, in whole trainings")
    parser.add_argument("--trials", type=int, default=12, help="to measure the overhead of")
    parser.add_argument("--parts", nargs="*", default=["regret", "overhead"])
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        config = make(Path(folder), args.users)
        result: dict[str, Any] = {"users": args.users, "seeds": args.seeds}
        with connected(config.cluster):
            prepare(config)
            if "regret" in args.parts:
                space = Space(dict(list(SPACE.items())[: args.parameters]), config)
                bench = Bench(space, table(space, config), args.trainings * EPOCHS)
                result["regret"] = regrets(bench, args.seeds)
                show_regret(result["regret"], args.seeds)
            if "overhead" in args.parts:
                result["overhead_s"] = {
                    "one rank": overhead(config, args.trials, workers=1),
                    "Ray Train": overhead(config, max(3, args.trials // 4), workers=2),
                }
                show_overhead(result["overhead_s"])
    print(json.dumps(result))


def make(folder: Path, users: int) -> Config:
    """The demo's configuration with few users and a tiny encoder that stays as it is."""
    encoder = folder / "encoder"
    tokenizer = AutoTokenizer.from_pretrained(encoder_path("minilm"))
    tokenizer.save_pretrained(encoder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tiny = BertConfig(vocab_size=len(tokenizer), intermediate_size=64, **shape)
    BertModel(tiny).save_pretrained(encoder)
    overrides: dict[str, Any] = {
        "lake": folder / "lake",
        "work": folder,
        "secret_file": folder / "secret",
        "oracle": folder / "raw/oracle/*.parquet",
        "buckets": 2,
        "simulate.users": users,
        "sources.events.path": folder / "raw/events/*/*.parquet",
        "network.width": 32,
        "network.text.encoder": encoder,
        "network.text.layers": "null",
        "network.text.trainable_layers": 0,
        "network.text.words": "null",
        "train.loop.epochs": EPOCHS,
        "train.loop.patience": EPOCHS,
        "train.loop.batch_rows": 32,
        "train.loop.learning_rate": 0.001,
        "train.loop.precision": "fp32",
    }
    for name in ("users", "protected", "edges", "labels"):
        overrides[f"sources.{name}.path"] = folder / f"raw/{name}/*.parquet"
    return load("demo", [f"{key}={value}" for key, value in overrides.items()])


def prepare(config: Config) -> None:
    """Raw files → lake → snapshot."""
    demo.prepare(config)
    jobs.run_simulate(config)
    jobs.run_ingest(config)
    snapshot.snapshot(config, jobs.tables(config))


class _Train:
    """Trains a point; the loss that would be kept after each epoch."""

    def __init__(self, config: Config, made: snapshot.Snapshot) -> None:
        self.config, self.made = config, made

    def __call__(self, point: Point) -> list[float]:
        config, histories = applied(self.config, point), []

        def done(history: History, loop: Loop) -> None:
            histories.append(kept(history)["log_loss"])

        frames = Frames(self.made, config.train.select_rows, config.seed)
        Rank(torch.device("cpu"), 1).train(config, self.made, frames, None, done)
        return histories


def table(space: Space, config: Config) -> Losses:
    """Every point of the space, trained."""
    start, points = time.perf_counter(), space.grid()
    made = snapshot.snapshot(config, jobs.tables(config))
    curves = over(points, _Train(config, made), "points")
    say(f"{len(points)} points trained in {time.perf_counter() - start:.0f} s")
    return {_name(point): curve for point, curve in zip(points, curves, strict=True)}


def regrets(bench: Bench, seeds: int) -> dict[str, Any]:
    """Search → its regrets at shares of the budget: median, mean and deviation over seeds."""
    result: dict[str, Any] = {"points": len(bench.losses), "budget_epochs": bench.budget}
    for name, seek in SEARCHES.items():
        runs = [seek(bench, seed) for seed in range(seeds)]
        result[name] = {
            f"{share:.0%}": _over_seeds([run[round(share * bench.budget) - 1] for run in runs])
            for share in BUDGETS
        }
        say(f"{name}: {result[name]}")
    return result


def overhead(config: Config, trials: int, workers: int) -> float:
    """Seconds a trial beside its training, after each process has had its first."""
    tuned = {"name": f"ranks-{workers}", "trials": trials, "workers": workers, "confirm": 0}
    small = applied(config, {"train.loop.epochs": 2, "train.select_rows": 64})
    tree = small.model_dump(mode="json") | {"tune": tuned | {"space": {"network.dropout": None}}}
    small = Config.model_validate(tree)
    at_once = concurrency(small)
    tune.tune(small, jobs.tables(small))
    done = load_study(tune.storage_of(small), small.tune.name).trials
    last = done[at_once:]
    trained = sum(e["seconds"] for trial in last for run in trial.user_attrs["runs"] for e in run)
    begin = min(trial.datetime_start for trial in last if trial.datetime_start)
    end = max(trial.datetime_complete for trial in last if trial.datetime_complete)
    return round((at_once * (end - begin).total_seconds() - trained) / len(last), 2)


def show_regret(result: dict[str, Any], seeds: int) -> None:
    """Regrets as a table."""
    shown = Table(f"regret, median of {seeds} seeds (deviation)", *(f"{b:.0%}" for b in BUDGETS))
    for name in SEARCHES:
        cells = (result[name][f"{share:.0%}"] for share in BUDGETS)
        shown.add_row(name, *(f"{c['median']:.4f} ({c['deviation']:.4f})" for c in cells))
    Console(width=100).print(shown)


def show_overhead(result: dict[str, float]) -> None:
    """Overheads as a table."""
    shown = Table("a trial beside its training", "seconds", "goal")
    for name, goal in (("one rank", 1.5), ("Ray Train", 8.0)):
        shown.add_row(name, f"{result[name]:.2f}", f"≤ {goal:g}")
    Console(width=100).print(shown)


def _over_seeds(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 5),
        "mean": round(statistics.fmean(values), 5),
        "deviation": round(statistics.stdev(values) if len(values) > 1 else 0.0, 5),
    }


def _name(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def say(line: str) -> None:
    """A line of progress, apart from the result."""
    print(f"bench-tune: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
