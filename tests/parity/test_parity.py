"""The keystone: one user, one time, the same events → one score, by every way through the house."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest

from models.data.features import features
from models.data.history import History, no_events, view
from models.data.rows import number
from models.data.tasks import midnight
from models.nets.int8 import exact
from models.scoring import artifact
from models.scoring.scorer import Scorer
from models.scoring.trees import Columns
from ray_jobs import jobs, registry, serve, snapshot
from ray_jobs.config import Config
from ray_jobs.graph import neighbours_of
from ray_jobs.secret import read_secret
from ray_jobs.serving import api, app, auth, convert
from ray_jobs.serving.client import requests_of
from ray_jobs.tables import Tables

USERS = 500
FEW = 40  # of them, where each is scored by itself
TOLERANCE = 1e-5  # of a probability, in fp32
CONCURRENT = 16  # a full batch, and as many as one replica is meant to take
TOKEN = "parity-0123456789abcdef"


@pytest.fixture(scope="module")
def tables(demo_run: Config) -> Tables:
    return jobs.tables(demo_run)


@pytest.fixture(scope="module")
def backfilled(demo_run: Config, tables: Tables) -> pl.DataFrame:
    """The backfill's scores of some users, by key."""
    scores = tables.lake.read("scores", where={"as_of_date": str(demo_run.split.test.last)})
    return scores.sort("user_key").head(USERS)


@pytest.fixture(scope="module")
def events(demo_run: Config, tables: Tables) -> pl.DataFrame:
    return pl.concat([tables.events(bucket) for bucket in tables.buckets])


@pytest.fixture(scope="module")
def url(
    demo_run: Config, tables: Tables, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The endpoint; its token is in a file, since Ray runs before a token is known."""
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(TOKEN, encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(auth.TOKEN_FILE, str(file))
        yield serve.start(demo_run, tables)
        app.stop()


def estimates(scores: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Each task's probability, or amount relative to its size, by user."""
    columns = []
    for name, task in config.tasks.items():
        field = "probability" if task.kind == "binary" else "amount"
        columns.append(pl.col(name).struct.field(field).alias(name))
    return scores.select("user_key", "grade", *columns)


def assert_equal(one: pl.DataFrame, other: pl.DataFrame, config: Config) -> None:
    both = one.join(other, on="user_key", suffix="_other", validate="1:1")
    assert both.height == one.height == other.height == USERS
    for name, task in config.tasks.items():
        scale = 1.0 if task.kind == "binary" else pl.col(name).abs() + 1.0
        gap = both.select(((pl.col(name) - pl.col(f"{name}_other")).abs() / scale).max()).item()
        assert gap <= TOLERANCE, f"{name}: {gap}"


def test_backfill_is_the_notebook(
    demo_run: Config, tables: Tables, backfilled: pl.DataFrame, events: pl.DataFrame
) -> None:
    """In a notebook: raw events with no baseline, in any order, some twice."""
    as_of = midnight(demo_run.split.test.last)
    mixed = pl.concat([events, events.sample(fraction=0.2, seed=1)]).sample(
        fraction=1.0, shuffle=True, seed=2
    )
    scorer = Scorer.load(registry.champion(tables.lake).path)
    ties = tables.graph(neighbours_of(scorer.spec), as_of)
    history = History(mixed, profiles=tables.read("users"), social=ties)
    rows = number(backfilled.select("user_key", as_of=pl.lit(as_of).cast(pl.Datetime("us", "UTC"))))
    scored = scorer.score(history, rows)
    assert_equal(estimates(scored, demo_run), estimates(backfilled, demo_run), demo_run)


def test_backfill_is_the_endpoint(
    demo_run: Config, tables: Tables, backfilled: pl.DataFrame, events: pl.DataFrame, url: str
) -> None:
    """Over HTTP: the user's events and profile in the request, the ties from the lake."""
    as_of = midnight(demo_run.split.test.last)
    identities = tables.read("identities")
    assert identities is not None
    ids = dict(identities.select("user_key", "user_id").iter_rows())
    users = {key: ids[key] for key in backfilled["user_key"]}
    bodies = list(requests_of(users, events, tables.read("users"), as_of))
    answers = asyncio.run(post_all(url, bodies))
    rows = [
        {"user_key": key, "grade": a["grade"], **{n: e for n, e in a["estimates"].items()}}
        for key, a in zip(users, answers, strict=True)
    ]
    answered = pl.DataFrame(rows, infer_schema_length=None)
    assert_equal(estimates(answered, demo_run), estimates(backfilled, demo_run), demo_run)
    shas = {a["model_sha256"] for a in answers}
    assert shas == set(backfilled["model_sha256"])


@pytest.mark.skipif(not exact(), reason="this processor adds in too few bits")
def test_in_int8_a_score_does_not_hang_on_what_is_scored_beside_it(
    demo_run: Config, tables: Tables
) -> None:
    """All rows at once, as a backfill has them, and each by itself, as the endpoint does."""
    path = Path(registry.champion(tables.lake).path)
    made = artifact.load(path)
    spec = made.spec.model_copy(update={"precision": "int8"})
    folder = Path(demo_run.work) / "snapshots" / spec.trained_on["snapshot"]
    known = snapshot.load(folder).read("test")
    scored = Scorer(made).score_features(known)
    together, alone = (Scorer(replace(artifact.load(path), spec=spec)) for _ in range(2))
    in_int8 = together.score_features(known)
    few = known.frame.filter(pl.col("texts").list.len() > 0).head(FEW)
    parts = [replace(known, frame=row) for row in few.iter_slices(1)]
    one_by_one = pl.concat([alone.score_features(part) for part in parts])
    for name in demo_run.tasks:
        own, company = one_by_one[name].struct[0], in_int8[few["row"]][name].struct[0]
        assert np.allclose(own, company, rtol=TOLERANCE, atol=TOLERANCE), name
    pd = demo_run.roles.pd
    gap = (in_int8[pd].struct[0] - scored[pd].struct[0]).abs()
    assert 0.0 < gap.max() < 0.02


def test_the_expert_reads_the_same_bits_by_every_road(
    demo_run: Config, tables: Tables, events: pl.DataFrame
) -> None:
    """The snapshot's columns, those of a notebook and those of a request: equal bit for bit."""
    spec = artifact.load_spec(Path(registry.champion(tables.lake).path))
    folder = Path(demo_run.work) / "snapshots" / spec.trained_on["snapshot"]
    offline = snapshot.load(folder).read("test")
    nothing_proposed = offline.frame.filter(pl.col("proposed_amount").is_null())
    frame = nothing_proposed.sort("user_key").head(USERS)
    as_of, columns = frame["as_of"][0], Columns.of(offline)
    bits = bits_of(frame, columns)
    assert np.isfinite(columns.matrix(frame)).any(axis=0).mean() > 0.8  # the columns say something

    def features_of(history: History, rows: pl.DataFrame) -> pl.DataFrame:
        seen = view(history, rows, spec.features.history)
        return features(seen, spec.stats.vocabulary, spec.features).frame

    mixed = events.sample(fraction=1.0, shuffle=True, seed=3)
    ties = tables.graph(neighbours_of(spec), as_of)
    notebook = features_of(
        History(mixed, profiles=tables.read("users"), social=ties),
        number(frame.select("user_key", "as_of")),
    )
    np.testing.assert_array_equal(bits_of(notebook, columns), bits)

    identities = tables.read("identities")
    assert identities is not None and ties is not None
    ids = dict(identities.select("user_key", "user_id").iter_rows())
    users = {key: ids[key] for key in frame["user_key"]}
    terms = api.terms_of(demo_run)
    asked = [
        api.parse(json.dumps(body).encode(), terms)
        for body in requests_of(users, events, tables.read("users"), as_of)
    ]
    history, rows = convert.to_history(
        asked, secret=read_secret(demo_run), terms=terms, social=ties
    )
    np.testing.assert_array_equal(bits_of(features_of(history, rows), columns), bits)


def bits_of(frame: pl.DataFrame, columns: Columns) -> np.ndarray:
    """The float64 bits of the expert's columns, before they are cut to float32."""
    values = frame.select(pl.col(columns.names).cast(pl.Float64)).to_numpy()
    return np.where(np.isnan(values), np.nan, values).view(np.uint64)


async def post_all(url: str, bodies: list[dict[str, object]]) -> list[dict[str, object]]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    limits = asyncio.Semaphore(CONCURRENT)
    async with httpx.AsyncClient(timeout=60, headers=headers) as client:

        async def one(body: dict[str, object]) -> dict[str, object]:
            async with limits:
                answer = await client.post(f"{url}/v1/score", json=body)
                assert answer.status_code == 200, answer.text
                result: dict[str, object] = answer.json()
                return result

        return list(await asyncio.gather(*(one(body) for body in bodies)))


def test_a_user_nobody_knows_is_answered(url: str) -> None:
    body: dict[str, object] = {"user_id": "nobody", "as_of": "2024-08-01T00:00:00+00:00"}
    (answer,) = asyncio.run(post_all(url, [body]))
    assert 0 <= float(str(answer["score"])) <= 100
    assert answer["weights"]["text"] == 0  # type: ignore[index]


def test_no_history_scores_alike_alone_and_among_others(
    demo_run: Config, tables: Tables, events: pl.DataFrame
) -> None:
    scorer = Scorer.load(registry.champion(tables.lake).path)
    as_of = pl.lit(midnight(demo_run.split.test.last)).cast(pl.Datetime("us", "UTC"))
    alone = number(pl.DataFrame({"user_key": [1]}).with_columns(as_of=as_of))
    one = scorer.score(History(no_events()), alone)
    many = number(
        pl.DataFrame({"user_key": [1, *events["user_key"].unique().sort()[:50]]}).with_columns(
            as_of=as_of
        )
    )
    among = scorer.score(History(events), many)
    assert abs(one["score"][0] - among["score"][0]) < 1e-3
