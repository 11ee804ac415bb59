"""`make bench-quality`: how good the model is, on real data, several seeds, beside its parts.

Every run is a process of its own: raw files → lake → snapshot → network and expert → evaluation.
The test role is read by `evaluate` only. Prints a table, then one line of JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from models.scoring.comparison import AmountContender, AmountTask, BinaryContender, BinaryTask
from models.scoring.evaluation import Evaluation
from ray_jobs.config import BUILT_IN
from ray_jobs.secret import make_secret
from tests.bench.quality_data import DATA, SHARED

RETAIL = "online_retail"
# What others reached, or what issue and README promise; of the last of these figures.
GOALS = {
    "clothing": {"pr_auc": 0.992, "f1": 0.957},
    "clothing_rating": {"pr_auc": 0.995, "f1": 0.968},
    "chinese": {"auc": 0.965},
}
Figures = dict[str, dict[str, float]]  # contender → figure → value


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="make bench-quality", description=__doc__)
    parser.add_argument("--data", nargs="*", default=[RETAIL, *DATA], choices=[RETAIL, *DATA])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0, help="of each data set; 0: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    result: dict[str, Any] = {"seeds": args.seeds, "rows": args.rows}
    for name in args.data:
        with tempfile.TemporaryDirectory() as folder:
            runs = runs_of(name, Path(folder), args.rows, range(args.seeds), args.set)
        for task in runs[0].tasks:
            several = [figures_of(run, task) for run in runs]
            result[f"{name} {task}"] = {
                "mean": mean_of(several),
                "seeds": several,
                "differences": [differences_of(run, task) for run in runs],
            }
    show(result)
    print(json.dumps(result))


def runs_of(
    name: str, folder: Path, rows: int, seeds: Sequence[int], overrides: Sequence[str]
) -> list[Evaluation]:
    """An evaluation a seed; the lake and the snapshot are the same for all."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree_of(name, folder, rows)), encoding="utf-8")
    make_secret(str(folder / "secret"))
    _call("ingest", config, overrides)
    runs = []
    for seed in seeds:
        own = [*overrides, f"seed={seed + 1}"]
        _call("train", config, own)
        _call("evaluate", config, own)
        text = (folder / "work" / "evaluation.json").read_text(encoding="utf-8")
        runs.append(Evaluation.model_validate_json(text))
        say(f"{name}, seed {seed + 1}: {figures_of(runs[-1], next(iter(runs[-1].tasks)))['model']}")
    return runs


def tree_of(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """The configuration of a data set, whose raw files are written."""
    if name in DATA:
        return DATA[name].write(folder, rows)
    tree: dict[str, Any] = yaml.safe_load((BUILT_IN / f"{RETAIL}.yaml").read_text(encoding="utf-8"))
    tree["sources"]["lines"]["path"] = str(SHARED / RETAIL / "onlineretail.parquet")
    own = {"lake": "lake", "work": "work", "secret_file": "secret"}
    tree |= {key: str(folder / value) for key, value in own.items()}
    return tree | {"stack": {"experts": ["lightgbm"]}}


def _call(verb: str, config: Path, overrides: Sequence[str]) -> None:
    sets = [part for one in overrides for part in ("--set", one)]
    command = [sys.executable, "-m", "ray_jobs", verb, "-c", str(config), *sets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{verb} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def figures_of(run: Evaluation, task: str) -> Figures:
    """Each contender's figures on a task."""
    return {one.name: _figures(one) for one in run.tasks[task].contenders}


def _figures(one: BinaryContender | AmountContender) -> dict[str, float]:
    scores = one.scores.model_dump()
    names = ("auc", "pr_auc", "f1", "log_loss", "spearman", "rmse")
    found = {name: scores[name] for name in names if scores.get(name) is not None}
    values = {n: v["value"] if isinstance(v, dict) else v for n, v in found.items()}
    return {name: round(value, 5) for name, value in values.items() if value is not None}


def differences_of(run: Evaluation, task: str) -> list[list[Any]]:
    """[of, against, metric, value, low, high] of a task, paired bootstrap."""
    found: BinaryTask | AmountTask = run.tasks[task]
    return [
        [d.of, d.against, d.metric, d.difference.value, d.difference.low, d.difference.high]
        for d in found.differences
    ]


def mean_of(several: Sequence[Figures]) -> Figures:
    """The mean over seeds of every contender's figures."""
    return {
        name: {
            figure: round(statistics.mean(one[name][figure] for one in several), 5)
            for figure in figures
        }
        for name, figures in several[0].items()
        if all(name in one for one in several)
    }


def show(result: dict[str, Any]) -> None:
    """The means over seeds as a table."""
    table = Table("data, task", "", "AUC", "PR-AUC", "F1", "log-loss", "Spearman", "RMSE", "goal")
    columns = ("auc", "pr_auc", "f1", "log_loss", "spearman", "rmse")
    for name, entry in result.items():
        if not isinstance(entry, dict):
            continue
        goals = GOALS.get(name.split()[0], {})
        goal = ", ".join(f"{figure} ≥ {value}" for figure, value in goals.items())
        for contender, figures in entry["mean"].items():
            values = [f"{figures[c]:.4f}" if c in figures else "" for c in columns]
            table.add_row(name, contender, *values, goal if contender == "model" else "")
        table.add_section()
    Console(width=120).print(table)


def say(line: str) -> None:
    """A line of progress, apart from the result."""
    print(f"bench-quality: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
