"""The main job on a small simulated marketplace: accounts balance, nothing is half published."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import BaseModel
from scipy.special import ndtr

from models.data.buckets import buckets
from models.data.schema import UserError
from models.data.stats import QUANTILES, fit_stats
from models.data.tasks import ROLES
from models.scoring.answer import STAMPS, columns
from models.scoring.evaluation import Evaluation
from ray_jobs import backfill, graph, jobs, registry, serve, snapshot
from ray_jobs.config import Config
from ray_jobs.lake import Lake
from ray_jobs.market.world import WORLD_VERSION, world_sha256
from ray_jobs.simulate import world_of
from ray_jobs.tables import Tables


@pytest.fixture(scope="module")
def tables(demo_run: Config) -> Tables:
    return jobs.tables(demo_run)


@pytest.fixture(scope="module")
def evaluation(demo_run: Config) -> Evaluation:
    text = (Path(demo_run.work) / "evaluation.json").read_text(encoding="utf-8")
    return Evaluation.model_validate_json(text)


def test_ingest_balances(tables: Tables) -> None:
    run = tables.lake.latest_run("ingest")
    assert run is not None
    counts = run["counts"]
    assert counts["rows_in"] == counts["accepted"] + counts["rejected"] + counts["duplicates"]
    assert counts["rejected"] == 0


def test_snapshot_balances_and_is_made_once(demo_run: Config, tables: Tables) -> None:
    made = snapshot.snapshot(demo_run, tables)
    account = made.account
    assert account["rows"] == sum(account[r] for r in ROLES) + account["without_events"]
    for role in ROLES:
        assert made.read(role).frame.height == account[role] > 0


def test_a_snapshot_that_was_removed_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no snapshot {tmp_path}/gone: removed, or of another"):
        snapshot.load(tmp_path / "gone")


def test_no_row_of_a_role_lies_in_another_roles_time(demo_run: Config, tables: Tables) -> None:
    made = snapshot.snapshot(demo_run, tables)
    for role in ROLES:
        period, frame = demo_run.split.period(role), made.read(role).frame
        days = frame["as_of"].dt.date()
        assert days.min() >= period.first
        assert days.max() <= period.last


def test_stats_are_those_of_the_fit_role_alone(demo_run: Config, tables: Tables) -> None:
    """Merged from the buckets' summaries, of which nothing is left."""
    made = snapshot.snapshot(demo_run, tables)
    fit = made.read("fit")
    whole = fit_stats(made.stats.vocabulary, fit, fit.frame, demo_run.tasks)
    assert made.stats.social == whole.social
    for name, scale in whole.tabular.items():
        assert made.stats.tabular[name].knots == pytest.approx(scale.knots), name
    assert [t.rate for t in made.stats.targets.values()] == [t.rate for t in whole.targets.values()]
    amounts = fit.frame["events_amount"].explode().drop_nulls().to_numpy().astype(np.float64)
    scores, expected = (one.apply(amounts) for one in (made.stats.amount, whole.amount))
    assert (np.abs(scores - expected) <= 0.02).mean() > 0.995
    # of a sketch: a knot may lie beyond a gap between amounts, which moves what is in the gap
    assert ndtr(scores) == pytest.approx(ndtr(expected), abs=1 / (QUANTILES - 1))
    assert np.abs(ndtr(scores) - ndtr(expected)).mean() < 0.001
    assert sorted(p.name for p in Path(made.folder).iterdir()) == sorted([*ROLES, "snapshot.json"])


def test_labels_are_those_of_the_lake(demo_run: Config, tables: Tables) -> None:
    labels = tables.read("labels")
    assert labels is not None
    default = labels.filter(pl.col("task") == "default").select("user_key", "as_of", "value")
    test = snapshot.snapshot(demo_run, tables).read("test").frame
    both = test.join(default, on=["user_key", "as_of"], how="left", maintain_order="left")
    assert both["y_default"].equals(both["value"].alias("y_default"))
    assert test["y_spend_30d"].null_count() == 0


def test_backfill_scored_everyone_once(demo_run: Config, tables: Tables) -> None:
    run = tables.lake.latest_run("backfill")
    assert run is not None
    counts = run["counts"]
    assert counts["users"] == counts["scored"] + counts["no_event_before_as_of"]
    scores = tables.lake.read("scores")
    assert scores.height == counts["scored"] == scores["user_key"].n_unique()
    assert {*scores.columns, "row", "saturated"} == {*columns(demo_run.tasks), *STAMPS}
    assert scores["score"].is_between(0, 100).all()
    champion = registry.champion(tables.lake)
    assert scores["model_sha256"].unique().to_list() == [champion.sha256]
    assert (scores["baseline_date"] == scores["as_of"]).all()


def test_backfill_again_changes_nothing(demo_run: Config, tables: Tables) -> None:
    version = tables.lake.version("scores")
    again = backfill.backfill(demo_run, tables)
    run = tables.lake.latest_run("backfill")
    assert run is not None
    assert again == run["counts"]
    assert tables.lake.version("scores") == version


def test_a_model_that_is_champion_again_publishes_again(
    demo_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo_run.lake, tmp_path / "lake")
    config = demo_run.model_copy(update={"lake": str(tmp_path / "lake")})
    tables = jobs.tables(config)

    def held() -> str:
        (run_id,) = tables.lake.read("scores")["run_id"].unique()
        return str(run_id)

    def runs() -> list[str]:
        rows = tables.lake.read("runs").filter(pl.col("verb") == "backfill").sort("finished_at")
        return rows["run_id"].to_list()

    first = held()
    assert runs() == [first]
    with monkeypatch.context() as patch:
        patch.setattr(backfill, "FORMAT", backfill.FORMAT + 1)  # another model's run
        backfill.backfill(config, tables)
        second = held()
    assert second != first
    backfill.backfill(config, tables)
    assert held() == first and runs() == [first, second, first]
    version = tables.lake.version("scores")
    backfill.backfill(config, tables)
    assert tables.lake.version("scores") == version and runs() == [first, second, first]


def test_users_who_are_erased_meanwhile_are_not_scored(
    demo_run: Config, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = tables.lake.version("scores")
    told = iter([frozenset(), frozenset({"somebody"})])
    monkeypatch.setattr(backfill, "FORMAT", backfill.FORMAT + 1)
    monkeypatch.setattr(backfill.tombstones, "erased", lambda lake: next(told))
    with pytest.raises(UserError, match=r"^users were erased meanwhile: run backfill again$"):
        backfill.backfill(demo_run, tables)
    assert tables.lake.version("scores") == version


def test_the_graph_is_the_champions_whatever_the_configuration_says(
    demo_run: Config, tables: Tables, tmp_path: Path
) -> None:
    """Backfill makes it and the endpoint reads it; another configuration's lies beside it."""
    shutil.copytree(demo_run.lake, tmp_path / "lake")
    shutil.rmtree(tmp_path / "lake" / "graph")
    own = replace(tables, lake=Lake(str(tmp_path / "lake")))
    parts: dict[str, tuple[BaseModel, dict[str, object]]] = {
        "roles": (demo_run.roles, {"pd": "fraud", "fraud": None}),
        "features": (demo_run.features, {"max_ties_of_a_node": 2}),
        "backfill": (demo_run.backfill, {"as_of": _day("2024-07-15")}),
    }
    edited = demo_run.model_copy(
        update={name: part.model_copy(update=update) for name, (part, update) in parts.items()}
    )
    month = datetime(2024, 7, 1, tzinfo=UTC)
    reader = serve.graph_reader(own, registry.champion(own.lake).path)
    assert reader is not None
    others = partial(own.graph, graph.neighbours_of(edited))
    backfill.backfill(edited, own)

    def champions() -> pl.DataFrame:
        parts = [reader.read(month, bucket) for bucket in buckets(reader.count)]
        return pl.concat([part for part in parts if part is not None])

    made = champions()
    assert made.height > 0 and others(month) is None
    graph.publish(edited, own, [month])
    again, other = champions(), others(month)
    assert other is not None
    assert again.equals(made) and not other.equals(made)


def test_backfill_beyond_the_watermark_is_refused(demo_run: Config, tables: Tables) -> None:
    late = demo_run.model_copy(
        update={"backfill": demo_run.backfill.model_copy(update={"as_of": _day("2025-01-01")})}
    )
    version = tables.lake.version("scores")
    with pytest.raises(UserError, match=r"backfill\.as_of 2025-01-01 lies after complete_until"):
        backfill.backfill(late, tables)
    assert tables.lake.version("scores") == version


def test_the_report_says_what_was_made(demo_run: Config, evaluation: Evaluation) -> None:
    page = (Path(demo_run.work) / "report.html").read_text(encoding="utf-8")
    assert evaluation.about.model_sha256[:12] in page
    for name in demo_run.tasks:
        assert name in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_evaluation_names_the_world(evaluation: Evaluation) -> None:
    told = evaluation.about.data_versions["simulated world"]
    assert told == f"version {WORLD_VERSION}, {world_sha256()}"
    assert world_of("nowhere/oracle/*.parquet") == "unknown"


def test_the_evaluation_has_baselines_and_oracle(evaluation: Evaluation) -> None:
    default = evaluation.tasks["default"]
    names = {contender.name for contender in default.contenders}
    assert names >= {"model", "lightgbm", "tfidf", "constant", "oracle"}
    assert evaluation.users > 0
    assert sum(row.group.users for row in evaluation.grades) == evaluation.users


def test_a_damaged_champion_is_refused(demo_run: Config, tables: Tables) -> None:
    path = Path(registry.champion(tables.lake).path) / "model.safetensors"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    try:
        path.write_bytes(bytes(damaged))
        with pytest.raises(UserError, match="changed since it was written"):
            jobs.run_promote(demo_run, None, "test")
    finally:
        path.write_bytes(whole)


def test_user_ids_are_nowhere_but_in_identities(demo_run: Config, tables: Tables) -> None:
    for table in tables.versions:
        if table != "identities":
            assert "user_id" not in tables.lake.read(table).columns, table
    text = json.dumps(tables.lake.latest_run("backfill"), default=str)
    assert "u0000" not in text


def _day(text: str) -> object:
    from datetime import date

    return date.fromisoformat(text)
