"""`demo`: the whole road, from raw files to scores over HTTP, and what came out of it."""

import os
import secrets

import polars as pl

from models.data.buckets import bucket_of
from models.data.tasks import midnight
from models.scoring.evaluation import Evaluation
from ray_jobs import backfill, evaluate, jobs, serve
from ray_jobs.config import Config
from ray_jobs.progress import console, say
from ray_jobs.report.terminal import summary_tables
from ray_jobs.secret import OF_SIMULATED_USERS, make_secret
from ray_jobs.serving import app, auth
from ray_jobs.serving.client import post, requests_of
from ray_jobs.tables import Tables

APPROVER = "demo"
HTTP_USERS = 5


def prepare(config: Config) -> None:
    """Before Ray starts: a secret for user keys, and a token for the endpoint's replicas.

    Keys decide in which order rows are trained on. Simulated users have nothing to hide: theirs are
    the same in every new folder, and with them what comes out of a demo.
    """
    if config.secret_file is not None:
        simulated = f"{OF_SIMULATED_USERS}{config.seed}" if config.simulate is not None else None
        make_secret(config.secret_file, simulated)
    os.environ.setdefault(config.serve.token_env, secrets.token_hex(32))


def demo(config: Config) -> None:
    """Walk the road, score some users over HTTP, and show what came out of it."""
    evaluation = walk(config)
    tables = jobs.tables(config)
    over_http = score_over_http(config, tables)
    accounts = {**evaluation.accounts, **evaluate.accounts(tables), "serve": over_http}
    evaluation = evaluation.model_copy(update={"accounts": accounts})
    report = evaluate.publish(config, evaluation)
    for table in summary_tables(evaluation):
        console.print(table)
    say(f"report: {report.resolve()}")


def walk(config: Config) -> Evaluation:
    """Simulate (where it is configured) → ingest → snapshot → train → evaluate → backfill."""
    if config.simulate is not None:
        jobs.run_simulate(config)
    jobs.run_ingest(config)
    jobs.run_train(config, None)
    tables = jobs.tables(config)
    evaluation = evaluate.evaluate(config, tables)
    jobs.run_promote(config, None, APPROVER)
    backfill.backfill(config, tables)
    return evaluation


def score_over_http(config: Config, tables: Tables) -> dict[str, int]:
    """Start the endpoint, ask it about some users, compare with the backfill, stop it."""
    as_of = midnight(config.backfill.as_of or config.split.test.last)
    scores = tables.lake.read("scores", where={"as_of_date": f"{as_of:%Y-%m-%d}"})
    some = scores.sort("user_key").head(HTTP_USERS)
    identities, profiles = tables.read("identities"), tables.read("users")
    assert identities is not None
    ids = dict(identities.select("user_key", "user_id").iter_rows())
    places = some.select(bucket_of(pl.col("user_key"), len(tables.buckets))).to_series()
    events = pl.concat([tables.events(bucket) for bucket in places.unique().sort()])
    users = {key: ids[key] for key in some["user_key"]}
    url = serve.start(config, tables)
    token = auth.token_of(config.serve.token_env, auth.token_file())
    equal = 0
    try:
        for body, row in zip(
            requests_of(users, events, profiles, as_of), some.iter_rows(named=True), strict=True
        ):
            answer = post(url, token, body)
            equal += abs(answer["score"] - row["score"]) < 1e-3
            decision = answer["decision"]
            say(
                f"POST /v1/score: score {answer['score']:.1f}, grade {answer['grade']}, "
                f"{decision['action']}; backfill {row['score']:.1f}, {row['grade']}"
            )
    finally:
        app.stop()
    return {"requests": some.height, "answered_as_backfill": equal}
