"""Graph snapshots made bucket by bucket are those made at once, and are published once."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.data.buckets import bucket_of
from models.data.clean import conform
from models.data.graph import graph_snapshot
from models.data.schema import EDGES, LABELS, Table, UserError
from ray_jobs import graph
from ray_jobs.config import Config
from ray_jobs.exchange import exchange_folder, write_blocks
from ray_jobs.lake import Lake
from ray_jobs.tables import Tables

MONTHS = [datetime(2024, month, 1, tzinfo=UTC) for month in (4, 5, 6)]
KINDS = ("device", "referral")
Frames = tuple[pl.DataFrame, pl.DataFrame]


@pytest.fixture(scope="module")
def world() -> Frames:
    """300 users at 40 devices (one with most of them), tied to each other, and their labels."""
    rng = np.random.default_rng(4)
    users = rng.integers(-(2**63), 2**63 - 1, 300)
    n = 1500
    to_user = rng.random(n) < 0.3
    device = np.where(rng.random(n) < 0.3, 0, rng.integers(0, 40, n))
    days = pl.Series(rng.integers(0, 150, n)) * timedelta(days=1)
    edges = pl.DataFrame(
        {
            "user_key": rng.choice(users, n),
            "dst": np.where(to_user, rng.choice(users, n), device),
            "dst_kind": np.where(to_user, "user", "device"),
            "relation": np.where(to_user, "referral", "device"),
            "valid_from": datetime(2024, 1, 15, tzinfo=UTC) + days,
        }
    ).with_columns(
        available_at="valid_from",
        valid_to=pl.when(pl.Series(rng.random(n) < 0.2)).then(
            pl.col("valid_from").dt.offset_by("60d")
        ),
    )
    labels = pl.DataFrame({"user_key": users, "value": (rng.random(300) < 0.3).astype(float)})
    matured = datetime(2024, 2, 1, tzinfo=UTC) + pl.Series(rng.integers(0, 150, 300)) * timedelta(1)
    labels = labels.with_columns(
        matured.alias("matured_at"), matured.alias("as_of"), task=pl.lit("default")
    )
    return conform(edges, EDGES), conform(labels, LABELS)


def tables_of(folder: Path, world: Frames, buckets: int) -> Tables:
    lake = Lake(str(folder))
    for table, frame in zip((EDGES, LABELS), world, strict=True):
        publish(lake, table, frame, buckets)
    return Tables(lake, lake.versions(), range(buckets, 2 * buckets))


def publish(lake: Lake, table: Table, frame: pl.DataFrame, buckets: int) -> None:
    placed = frame.with_columns(bucket=bucket_of(pl.col("user_key"), buckets))
    files = [
        lake.write_part(table, part, {"source": "s", "period": "all", "bucket": bucket})
        for (bucket,), part in placed.group_by("bucket")
    ]
    lake.publish(table, app=table.name, generation=1, files=files)


def config_of(config: Config, cap: int) -> Config:
    few = config.features.model_copy(update={"max_ties_of_a_node": cap})
    return config.model_copy(update={"features": few})


@pytest.mark.parametrize(("buckets", "cap"), [(1, 100), (4, 100), (4, 10_000)])
def test_buckets_make_what_is_made_at_once(
    tmp_path: Path, world: Frames, demo_config: Config, ray_cluster: None, buckets: int, cap: int
) -> None:
    tables = tables_of(tmp_path / "lake", world, buckets)
    config = config_of(demo_config, cap)
    account = graph.publish(config, tables, MONTHS)
    edges, labels = world
    neighbours = graph.neighbours_of(config)
    for date in MONTHS:
        made = tables.graph(neighbours, date)
        assert made is not None
        assert made.sort("user_key").equals(graph_snapshot(edges, labels, date, KINDS, cap))
        stored = tables.lake.read("graph", where=neighbours.month(date))
        assert stored["bucket"].equals(
            stored.select(bucket=bucket_of(pl.col("user_key"), buckets))["bucket"]
        )
    assert (account["hubs"] > 0) == (account["ties_left_out"] > 0) == (cap == 100)
    assert [p for p in (tmp_path / "lake").iterdir() if "staging" in p.name] == []
    version = tables.lake.version("graph")
    assert graph.publish(config, tables, MONTHS) == account
    assert tables.lake.version("graph") == version


def test_a_pass_may_hold_one_month(
    tmp_path: Path,
    world: Frames,
    demo_config: Config,
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph, "_MOST_BLOCKS", 1)
    tables = tables_of(tmp_path / "lake", world, 2)
    config = config_of(demo_config, 100)
    graph.publish(config, tables, MONTHS[:2])
    for date in MONTHS[:2]:
        made = tables.graph(graph.neighbours_of(config), date)
        assert made is not None and made.height > 0


def test_a_lake_without_ties_has_no_snapshot(
    tmp_path: Path, world: Frames, demo_config: Config, ray_cluster: None
) -> None:
    none, config = (world[0].clear(), world[1]), config_of(demo_config, 100)
    for name, tables in (
        ("absent", Tables(Lake(str(tmp_path / "absent")), {}, range(1, 2))),
        ("empty", tables_of(tmp_path / "empty", none, 2)),
    ):
        assert graph.publish(config, tables, MONTHS) == {"hubs": 0, "ties_left_out": 0}, name
        assert tables.graph(graph.neighbours_of(config), MONTHS[0]) is None


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_month_without_ties_is_an_empty_one(
    first: bool, tmp_path: Path, world: Frames, demo_config: Config, ray_cluster: None
) -> None:
    tables = tables_of(tmp_path / "lake", world, 2)
    config, before_all_ties = config_of(demo_config, 100), datetime(2024, 1, 1, tzinfo=UTC)
    order = [[before_all_ties], MONTHS[:1]] if first else [MONTHS[:1], [before_all_ties]]
    neighbours = graph.neighbours_of(config)
    for dates in order:
        graph.publish(config, tables, dates)
    version = tables.lake.version("graph")
    graph.publish(config, tables, [before_all_ties])
    assert tables.lake.version("graph") == version
    none = tables.graph(neighbours, before_all_ties)
    some = tables.graph(neighbours, MONTHS[0])
    assert none is not None and some is not None
    assert none.is_empty() and none.schema == some.schema
    assert some.height > 0


def test_models_of_another_task_or_cap_have_graphs_of_their_own(
    tmp_path: Path, world: Frames, demo_config: Config, ray_cluster: None
) -> None:
    edges, labels = world
    others = labels.with_columns(task=pl.lit("a/b"), value=1 - pl.col("value"))
    both = pl.concat([labels, others])
    tables, date = tables_of(tmp_path / "lake", (edges, both), 2), MONTHS[1]
    config = config_of(demo_config, 100)
    other = config.roles.model_copy(update={"pd": "a/b"})
    cases = (
        (config, labels, 100),
        (config_of(config, 10_000), labels, 10_000),
        (config.model_copy(update={"roles": other}), others, 100),
    )
    for one, _, _ in cases:
        graph.publish(one, tables, [date])
    for one, outcomes, cap in cases:
        made = tables.graph(graph.neighbours_of(one), date)
        assert made is not None
        assert made.sort("user_key").equals(graph_snapshot(edges, outcomes, date, KINDS, cap))


def test_a_graph_that_does_not_say_whose_outcomes_it_tells_is_refused(
    tmp_path: Path, world: Frames, demo_config: Config, ray_cluster: None
) -> None:
    tables = tables_of(tmp_path / "lake", world, 2)
    table = graph.graph_table(KINDS)
    dropped = table.schema.remove(table.schema.get_field_index("neighbours"))
    old = replace(table, schema=dropped)
    where = {"graph_month": "2024-04-01"}
    tables.lake.replace(old, app="graph/2024-04-01", files=[], where=where)
    with pytest.raises(UserError, match=r"of an earlier version: remove .*/lake/graph, and"):
        graph.publish(demo_config, tables, MONTHS)
    shutil.rmtree(tmp_path / "lake" / "graph")
    graph.publish(demo_config, tables, MONTHS[:1])
    made = tables.graph(graph.neighbours_of(demo_config), MONTHS[0])
    assert made is not None and made.height > 0


def test_labelled_times_need_the_snapshots_of_their_months(
    tmp_path: Path, world: Frames, demo_config: Config, ray_cluster: None
) -> None:
    split = demo_config.split.model_copy(update={"schedule": "labels"})
    tables = tables_of(tmp_path / "lake", world, 4)
    times = world[1].filter(split.role_of(pl.col("as_of"), pl.lit("")).is_not_null())["as_of"]
    expected = sorted({time.replace(day=1) for time in times})
    assert len(expected) > 1
    assert graph.labelled_months(tables, split) == expected
    unlabelled = Tables(tables.lake, {"edges": tables.versions["edges"]}, tables.buckets)
    with pytest.raises(UserError, match="no source maps to the labels table"):
        graph.labelled_months(unlabelled, split)


def test_the_folder_of_an_exchange_goes_whatever_happens(tmp_path: Path) -> None:
    frame = pl.DataFrame({"bucket": [0], "k": [1]})
    with pytest.raises(KeyError), exchange_folder(str(tmp_path)) as folder:
        write_blocks(frame, f"{folder}/a")
        assert len(list(tmp_path.glob("*/a*"))) == 1
        raise KeyError
    with exchange_folder(str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []
