"""Bring your own data: the UCI Online Retail file, with nothing but its configuration."""

from pathlib import Path

import pytest

from models.scoring.evaluation import Evaluation
from ray_jobs import demo, evaluate, jobs
from ray_jobs.config import Config, load


@pytest.fixture(scope="module")
def retail(
    shared_data: Path,
    ray_cluster: None,
    tiny_encoder: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Config, Evaluation]:
    """The road walked with a small network and one epoch."""
    folder = tmp_path_factory.mktemp("retail")
    overrides = {
        "lake": folder / "lake",
        "work": folder / "work",
        "secret_file": folder / "secret",
        "sources.lines.path": shared_data / "online_retail/onlineretail.parquet",
        "buckets": 2,
        "features.max_events": 16,
        "features.max_texts": 1,
        "network.width": 16,
        "network.text.encoder": tiny_encoder,
        "train.loop.epochs": 1,
        "train.loop.batch_rows": 256,
        "backfill.workers": 1,
    }
    config = load("online_retail", [f"{key}={value}" for key, value in overrides.items()])
    demo.prepare(config)
    return config, demo.walk(config)


def test_every_row_is_accounted_for(retail: tuple[Config, Evaluation]) -> None:
    counts = evaluate.accounts(jobs.tables(retail[0]))["ingest"]
    assert counts == {
        "rows_in": 541_909,
        "accepted": 401_604,
        "rejected": 135_080,
        "duplicates": 5_225,
    }


def test_rejected_for_want_of_a_customer(retail: tuple[Config, Evaluation]) -> None:
    rejected = jobs.tables(retail[0]).read("rejected")
    assert rejected is not None
    assert rejected.height == 135_080
    assert rejected["reason"].n_unique() == 1
    assert rejected["row"].is_not_null().all()


def test_ours_stands_beside_lightgbm(retail: tuple[Config, Evaluation]) -> None:
    tasks = retail[1].tasks
    assert list(tasks) == ["cancels_30d", "buys_30d", "spend_30d"]
    for task in tasks.values():
        names = {contender.name for contender in task.contenders}
        assert names >= {"model", "lightgbm", "tfidf", "constant"}
        assert "oracle" not in names


def test_without_edges_the_social_modality_is_masked(retail: tuple[Config, Evaluation]) -> None:
    tables = jobs.tables(retail[0])
    scores = tables.lake.read("scores")
    weights = scores["weights"].struct.unnest()
    assert (weights["social"] == 0).all()
    assert str(scores["as_of"].unique().item().date()) == "2011-11-01"
