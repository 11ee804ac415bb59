"""`backfill`: every user as of a date → scores, published for the whole date in one commit."""

import dataclasses
import json
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.data.history import Baseline, no_events
from models.data.rows import rows_as_of
from models.data.schema import Table, UserError
from models.data.tasks import check_complete, midnight
from models.scoring import artifact
from models.scoring.scorer import Scorer
from ray_jobs import baselines, graph, registry, tombstones
from ray_jobs.config import Config
from ray_jobs.lake import Lake
from ray_jobs.parallel import over_actors, threads_of, total
from ray_jobs.progress import say
from ray_jobs.snapshot import complete_until
from ray_jobs.storage import DataFile, filesystem, rows_of, short_digest
from ray_jobs.tables import Tables

FORMAT = 2  # raised when the same model and data come to give other scores


def backfill(config: Config, tables: Tables) -> dict[str, int]:
    """Score everyone as of the configured date with the champion; the account.

    Readers see the earlier scores of that date or all of the new ones, never a part. The same
    date, model and data again change nothing. Raises UserError for a date beyond the sources'
    watermark, and when no model is champion.
    """
    started, erased = datetime.now(UTC), tombstones.erased(tables.lake)
    day = config.backfill.as_of or config.split.test.last
    as_of = midnight(day)
    check_complete(as_of, as_of - as_of, complete_until(config), "backfill.as_of")
    model = registry.champion(tables.lake)
    run_id = _identity(model.sha256, tables.versions, day)
    done = tables.lake.run("backfill", run_id)
    if done is not None and _published(tables.lake, day) == run_id:
        say(f"backfill: {day} with model {model.sha256[:16]} is already published")
        return done
    graph.publish(artifact.load_spec(Path(model.path)), tables, [as_of.replace(day=1)])
    make = partial(ScoreBucket, config, tables, model.path, day, run_id)
    results = over_actors(tables.buckets, make, "backfill", config.backfill.workers)
    account = total([counts for _, _, counts in results])
    assert account["users"] == account["scored"] + account["no_event_before_as_of"]
    if not account["scored"]:
        raise UserError(f"backfill: no user has an event before {day}")
    made = [baseline for _, baseline, _ in results if baseline is not None]
    tombstones.check_same(tables.lake, erased, "run backfill again")
    baselines.publish(tables.lake, day, made)
    _publish(tables, day, [file for file, _, _ in results if file is not None], run_id)
    tombstones.check_same(tables.lake, erased, "erase them again: they are in its scores")
    tables.lake.record_run(
        "backfill",
        run_id,
        config.model_dump(mode="json"),
        account,
        model.sha256,
        started_at=started,
        versions=tables.versions,
        # a model that is champion again publishes again what it had published before
        time=tables.lake.generation("scores", _application(day)),
    )
    say(f"backfill: {json.dumps(account)}")
    return account


def _application(day: date) -> str:
    return f"scores/{day}"


def _published(lake: Lake, day: date) -> str | None:
    """The run whose scores of a date the lake holds; None where it has none."""
    if not lake.exists("scores"):
        return None
    held = lake.files("scores", where={"as_of_date": str(day)})
    found = rows_of(held[0], pl.Schema({"run_id": pl.String})) if held else pl.DataFrame()
    return None if found.is_empty() else str(found["run_id"][0])


def _publish(tables: Tables, day: date, files: list[DataFile], run_id: str) -> None:
    """All files of a date in one commit."""
    system, path = filesystem(files[0].path)
    table = scores_table(pq.read_schema(path, filesystem=system))
    tables.lake.replace(
        table,
        app=_application(day),
        files=files,
        where={"as_of_date": str(day)},
        metadata={"run_id": run_id},
    )


def scores_table(schema: pa.Schema) -> Table:
    """The `scores` table; its structs follow the tasks, so its columns are those of a file."""
    return Table(
        name="scores",
        schema=pa.schema([*schema, pa.field("as_of_date", pa.string())]),
        key=("user_key", "as_of"),
        sort=("user_key",),
        required=(),
    )


class ScoreBucket:
    """Scores the users of a bucket; made once a worker, with the model loaded."""

    def __init__(self, config: Config, tables: Tables, model: str, day: date, run_id: str) -> None:
        torch.set_num_threads(threads_of(config.backfill.workers))
        self.scorer = Scorer.load(model)
        self.tables, self.day, self.run_id = tables, day, run_id

    def __call__(self, bucket: int) -> tuple[DataFile | None, DataFile | None, dict[str, int]]:
        """Write the bucket's scores and its baseline; the files, where there is a user with an
        event before the date, and the counts."""
        lake, history = self.tables.lake, self.scorer.spec.features.history
        made = baselines.baseline_of(self.tables, bucket, midnight(self.day), history)
        scores, counts = self.score(bucket, made.baseline)
        file = None
        if scores.height:
            table = scores_table(scores.to_arrow().schema)
            file = lake.write_part(table, scores, {"as_of_date": self.day})
        return file, made.write(lake), counts | made.account()

    def score(self, bucket: int, baseline: Baseline) -> tuple[pl.DataFrame, dict[str, int]]:
        """The scores of everyone in the bucket who has an event before the date."""
        as_of = midnight(self.day)
        users = self.tables.read("identities", bucket, ["user_key"])
        assert users is not None
        neighbours = graph.neighbours_of(self.scorer.spec)
        known = self.tables.history(bucket, no_events(), neighbours, [as_of.replace(day=1)])
        history = dataclasses.replace(known, baseline=baseline)
        rows = rows_as_of(baseline.lifetime["user_key"], as_of)
        scores = self.scorer.score(history, rows)
        everyone = users["user_key"].n_unique()
        counts = {
            "users": everyone,
            "scored": scores.height,
            "no_event_before_as_of": everyone - scores.height,
            "saturated": int(scores["saturated"].sum()),
        }
        stamped = scores.drop("row", "saturated").with_columns(run_id=pl.lit(self.run_id))
        return stamped, counts


def _identity(sha256: str, versions: dict[str, int], day: date) -> str:
    """What determines the content: the model, the data and the date."""
    return short_digest([FORMAT, sha256, versions, str(day)])
