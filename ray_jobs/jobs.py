"""Each verb, wired to its job. What loads torch is imported by the verb that needs it."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.data.schema import UserError
from ray_jobs import compact, erase, snapshot
from ray_jobs.cluster import connected
from ray_jobs.config import Config, load
from ray_jobs.ingest import ingest
from ray_jobs.lake import Lake
from ray_jobs.progress import console, say
from ray_jobs.reach import check
from ray_jobs.secret import read_secret
from ray_jobs.simulate import simulate
from ray_jobs.tables import Tables, ingested


def run(arguments: argparse.Namespace) -> None:
    """Load the configuration and run the verb inside a Ray session, if it needs them."""
    if arguments.verb == "import-encoder":
        from ray_jobs.import_encoder import import_encoder

        import_encoder(arguments.weights, arguments.tokenizer, arguments.to)
        return
    config = load(arguments.config, arguments.overrides)
    if arguments.verb == "demo":
        from ray_jobs import demo

        demo.prepare(config)
    if arguments.verb == "tune":
        from ray_jobs import tune

        config = tune.checked(config, arguments.name)
    verbs: dict[str, Callable[[], Any]] = {
        "simulate": lambda: run_simulate(config),
        "ingest": lambda: run_ingest(config),
        "snapshot": lambda: snapshot.snapshot(config, tables(config)),
        "pretrain": lambda: run_pretrain(config),
        "train": lambda: run_train(config, arguments.name, arguments.from_study, arguments.trial),
        "tune": lambda: run_tune(config),
        "evaluate": lambda: run_evaluate(config),
        "promote": lambda: run_promote(config, arguments.model, arguments.approver),
        "backfill": lambda: run_backfill(config),
        "serve": lambda: run_serve(config),
        "compact": lambda: run_compact(config, arguments.vacuum_days),
        "erase": lambda: run_erase(config, arguments.user_ids, arguments.file),
        "demo": lambda: run_demo(config),
    }
    if arguments.verb != "simulate":
        reads_raw = arguments.verb in ("ingest", "demo")
        check(config.lake, [s.path for s in config.sources.values()] if reads_raw else [])
    with connected(config.cluster):
        verbs[arguments.verb]()


def tables(config: Config) -> Tables:
    """The lake as the last ingest left it."""
    return ingested(Lake(config.lake))


def run_simulate(config: Config) -> dict[str, int]:
    """Write the raw files of a simulated marketplace."""
    if config.simulate is None:
        raise UserError("simulate: the configuration has no such section")
    return simulate(config.simulate, str(Path(config.work) / "raw"))


def run_ingest(config: Config) -> None:
    """Raw files → the lake; prints the account."""
    account = ingest(
        Lake(config.lake),
        config.sources,
        numeric=config.profile.numeric,
        categorical=config.profile.categorical,
        protected=config.profile.protected,
        buckets=config.buckets,
        secret=read_secret(config),
        now=datetime.now(UTC),
    )
    console.print(account.table())


def run_pretrain(config: Config) -> None:
    """Train what needs no labels."""
    from ray_jobs import pretrain

    pretrain.pretrain(config, tables(config))


def run_train(
    config: Config, name: str | None, study: str | None = None, trial: int | None = None
) -> Path:
    """Train on the configuration's snapshot, made if it is not there; what a study found, if one
    is named."""
    from ray_jobs import train, tune

    if study is not None:
        config = tune.from_study(tune.named(config, study), trial)
    elif trial is not None:
        raise UserError("--trial: of which study? --from-study NAME")
    where = tables(config)
    return train.train(config, where.lake, snapshot.snapshot(config, where), name)


def run_tune(config: Config) -> None:
    """Search; → a study and its page."""
    from ray_jobs import tune

    tune.tune(config, tables(config))


def run_evaluate(config: Config) -> None:
    """Evaluate the latest candidate; prints the summary."""
    from ray_jobs import evaluate
    from ray_jobs.report.terminal import summary_tables

    for table in summary_tables(evaluate.evaluate(config, tables(config))):
        console.print(table)


def run_promote(config: Config, model: str | None, approver: str) -> None:
    """Make a candidate the champion."""
    from ray_jobs import registry

    lake = Lake(config.lake)
    sha256 = model or registry.latest(lake).sha256
    registry.promote(lake, sha256, approver)
    say(f"promote: {sha256[:16]} is champion, approved by {approver}")


def run_backfill(config: Config) -> None:
    """Score everyone with the champion."""
    from ray_jobs import backfill

    backfill.backfill(config, tables(config))


def run_serve(config: Config) -> None:
    """Answer over HTTP until interrupted."""
    from ray_jobs import serve

    serve.serve_forever(config, tables(config))


def run_demo(config: Config) -> None:
    """All of it, one after the other."""
    from ray_jobs import demo

    demo.demo(config)


def run_compact(config: Config, vacuum_days: int | None) -> None:
    """Merge the lake's small files; prints the account."""
    console.print(compact.shown(compact.compact(Lake(config.lake), vacuum_days)))


def run_erase(config: Config, user_ids: list[str], file: str | None) -> None:
    """Remove users from the lake and the work folder; prints the account."""
    ids = erase.ids_of(user_ids, file)
    erase.erase(Lake(config.lake), Path(config.work), ids, read_secret(config))
