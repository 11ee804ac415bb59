"""`evaluate`: the latest candidate on the test role, beside baselines and the oracle → a report."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import polars as pl
import ray
import torch

from models.data.keys import keys_of
from models.data.schema import UserError
from models.data.tasks import ROLES
from models.scoring import artifact
from models.scoring.baselines import Baselines, fit_baselines
from models.scoring.evaluation import About, Evaluation
from models.scoring.evaluation import evaluate as evaluation_of
from models.scoring.scorer import Scorer
from models.scoring.trees import Columns
from ray_jobs import registry
from ray_jobs.config import Config
from ray_jobs.parallel import over_actors, result_of, threads_of
from ray_jobs.progress import say
from ray_jobs.report.build import write_report
from ray_jobs.secret import read_secret
from ray_jobs.simulate import world_of
from ray_jobs.snapshot import Snapshot, load
from ray_jobs.tables import Tables

Accounts = Mapping[str, Mapping[str, int]]


def evaluate(config: Config, tables: Tables) -> Evaluation:
    """Score the test role, fit the baselines, compare, write `report.html` and `evaluation.json`.

    Raises UserError when there is no candidate.
    """
    model = registry.latest(tables.lake)
    spec = artifact.load_spec(Path(model.path))
    # a configuration that has changed since says nothing of what the model estimates
    config = config.model_copy(update={"tasks": spec.tasks, "roles": spec.roles})
    snapshot = load(Path(config.work) / "snapshots" / spec.trained_on["snapshot"])
    experts = {source for stack in spec.stack.values() for source in stack.alone}
    baselines = _baselines.remote(config, snapshot, experts)
    predictions = _predict(config, snapshot, model.path)
    labels = [f"y_{name}" for name in config.tasks]
    test = snapshot.read("test", ["user_key", "as_of", *labels]).frame
    result = evaluation_of(
        test,
        predictions,
        result_of(baselines),
        about=About(
            title=Path(config.work).name,
            made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            model_sha256=model.sha256,
            data_versions=_data(config, snapshot),
            seed=config.seed,
            config=config.model_dump_json(indent=1),
            currency=_currency(config),
            kept=spec.stats.kept or (),
        ),
        tasks=config.tasks,
        roles=config.roles,
        scorecard=spec.scorecard,
        policy=spec.policy,
        oracle=oracle_of(config),
        withheld=WITHHELD if config.oracle else (),
        training=model.details["epochs"],
        accounts={**accounts(tables), "snapshot": snapshot.account},
    )
    report = publish(config, result)
    say(f"evaluate: {report}")
    return result


def publish(config: Config, evaluation: Evaluation) -> Path:
    """Write the evaluation as JSON and as a page; the page's path."""
    folder = Path(config.work)
    path = folder / "evaluation.json"
    staged = path.with_suffix(".tmp")
    staged.write_text(evaluation.model_dump_json(indent=1), encoding="utf-8")
    os.replace(staged, path)
    write_report(evaluation, folder / "report.html")
    return folder / "report.html"


def accounts(tables: Tables) -> dict[str, dict[str, int]]:
    """What the jobs of the lake counted, newest run of each."""
    runs = {verb: tables.lake.latest_run(verb) for verb in ("ingest", "backfill")}
    return {verb: run["counts"] for verb, run in runs.items() if run is not None}


WITHHELD = ("without_text", "without_order", "without_social", "without_tabular")


def oracle_of(config: Config) -> pl.DataFrame | None:
    """The simulator's true probabilities with user keys; None for real data."""
    if config.oracle is None:
        return None
    try:
        oracle = pl.read_parquet(config.oracle)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"oracle {config.oracle}: cannot be read") from error
    keys = keys_of(read_secret(config), oracle["user_id"]).alias("user_key")
    utc = pl.col("as_of").dt.replace_time_zone("UTC").cast(pl.Datetime("us", "UTC"))
    return oracle.with_columns(keys, utc).drop("user_id")


def _data(config: Config, snapshot: Snapshot) -> dict[str, str]:
    """The versions of the lake's tables, and the simulated world that they came from."""
    world = {} if config.oracle is None else {"simulated world": world_of(config.oracle)}
    return {name: str(version) for name, version in snapshot.versions.items()} | world


def _currency(config: Config) -> str:
    stated = {s.currency for s in config.sources.values() if s.table == "events" and s.currency}
    return ", ".join(sorted(stated))


@ray.remote(num_cpus=1)
def _baselines(config: Config, snapshot: Snapshot, experts: set[str]) -> Baselines:
    columns = Columns(snapshot.tabular, snapshot.categorical, snapshot.social)
    read = [*columns.names, "texts", *(f"y_{name}" for name in config.tasks)]
    frames = {role: snapshot.read(role, read).frame for role in ROLES}
    return fit_baselines(frames, columns, config.tasks, seed=config.seed, leave_out=experts)


def _predict(config: Config, snapshot: Snapshot, model: str) -> pl.DataFrame:
    """Predictions of the test role, in the order of `snapshot.read("test")`."""
    out = Path(config.work) / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    files = snapshot.files("test")
    if not files:
        raise UserError("evaluate: the snapshot has no row in the role test")
    make = partial(_ScoreFile, config.backfill.workers, snapshot.folder, model, out)
    parts = over_actors(files, make, "evaluate", config.backfill.workers)
    together = pl.concat([pl.read_parquet(part) for part in parts])
    return together.with_columns(row=pl.int_range(pl.len(), dtype=pl.UInt32))


class _ScoreFile:
    """Scores one file of the test role."""

    def __init__(self, workers: int, snapshot: str, model: str, out: Path) -> None:
        torch.set_num_threads(threads_of(workers))
        self.scorer, self.snapshot, self.out = Scorer.load(model), load(Path(snapshot)), out

    def __call__(self, file: str) -> Path:
        frame = pl.read_parquet(file)
        known = self.snapshot.features(frame)
        scores = self.scorer.score_features(known, frame["proposed_amount"])
        alone = self.scorer.alone(known)
        if alone.width:
            scores = scores.with_columns(alone=alone.to_struct())
        path = self.out / Path(file).name
        scores.write_parquet(path)
        return path
