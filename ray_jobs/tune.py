"""`tune`: a search over configurations, each trained as by `train`; Ray Tune runs the trials."""

from pathlib import Path
from typing import Any

import polars as pl
from optuna.storages import BaseStorage, get_storage
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from models.data.features import FeatureConfig
from models.data.schema import UserError
from models.nets.config import ARCHITECTURE
from models.nets.text import check_encoder, encoder_digest
from ray_jobs import snapshot
from ray_jobs.config import Config, first_fault
from ray_jobs.feed import Feed, Phase
from ray_jobs.progress import say
from ray_jobs.ranks import check_room
from ray_jobs.report.tuning import write_tuning_report
from ray_jobs.storage import short_digest
from ray_jobs.tables import Tables
from ray_jobs.train import MAY_CHANGE
from tuning.confirm import Confirmation, chosen
from tuning.search import Search, load_study, open_study
from tuning.space import Point, Space, applied
from tuning.summary import Study, summary

DATABASE = "study.db"


def tune(config: Config, tables: Tables) -> None:
    """Search, confirm, report. A study of the same name that was cut off goes on.

    Raises UserError for a space that is none, a study that searched something else, and where
    the first trials all fail.
    """
    space = space_of(config)
    identity = _identity(config, tables, space)
    folder_of(config).mkdir(parents=True, exist_ok=True)
    study = open_study(storage_of(config), config.tune, identity)
    search = Search(study, space, config.tune, config.train.loop.epochs, config.seed)
    phases: list[Phase] = [search, Confirmation(study, space, config.tune)]
    protected = _protected(config, tables)
    try:
        if not all(phase.finished for phase in phases):
            if config.tune.workers > 1:
                check_room(config.train, config.tune.workers)
            check_encoder(config.network.text, config.features.max_tokens)
            made = _snapshots(config, tables, space)
            Feed(phases, config, made, folder_of(config), short_digest(identity), protected).run()
    finally:  # of a search that was cut off too, so far
        if protected is not None:
            protected.unlink()
        found = summary(study, config.tune.objectives, list(space.parameters), space.defaults())
        page = write_tuning_report(found, folder_of(config) / "tuning_report.html")
    for line in told(found):
        say(f"tune: {line}")
    say(f"tune: {page}")


def told(found: Study) -> list[str]:
    """What a search came to, in a line or two."""
    lines = [
        f"{len(found.trials)} trials, {found.epochs} epochs; stopping early saved "
        f"{found.saved:.0%} of {found.epochs_unstopped}"
    ]
    if found.front:
        lines.append(f"on the Pareto front: trials {', '.join(map(str, found.front))}")
    if found.winner is not None:
        gain = found.gain
        over = "" if gain is None else f", {gain.mean:+.4f} ± {gain.error:.4f} over the defaults"
        lines.append(f"trial {found.winner} won{over}: raycredit train --from-study {found.name}")
    return lines


def storage_of(config: Config) -> BaseStorage:
    """The database of a study, opened. Raises UserError."""
    url = config.tune.storage or f"sqlite:///{folder_of(config) / DATABASE}"
    try:
        return get_storage(url)
    except (SQLAlchemyError, ImportError, ValueError) as error:  # no driver; not even a port
        raise UserError(f"tune.storage {url}: {str(error).splitlines()[0]}") from error


def checked(config: Config, name: str | None) -> Config:
    """The configuration with a study's name, if one is given; what it searches is a space.

    Raises UserError; nothing has been started then.
    """
    config = named(config, name)
    space_of(config)
    return config


def named(config: Config, name: str | None) -> Config:
    """The configuration with a study's name, if one is given. Raises UserError."""
    return config if name is None else _changed(config, {"tune.name": name}, name)


def from_study(config: Config, number: int | None) -> Config:
    """The configuration with the values that won a study, or those of one of its trials.

    Raises UserError, also where it does not take them: a study knows nothing of `train.sharding`.
    """
    name = config.tune.name
    if config.tune.storage is None and not (folder_of(config) / DATABASE).exists():
        raise UserError(f"there is no study {name!r}; run `raycredit tune` first")
    study = load_study(storage_of(config), name)
    return _changed(config, chosen(study, number), name)


def _changed(config: Config, point: Point, study: str) -> Config:
    try:
        return applied(config, point)
    except ValidationError as error:
        raise UserError(f"the study {study!r}: {first_fault(error)}") from error


def space_of(config: Config) -> Space:
    """What a configuration searches. Raises UserError."""
    return Space(config.tune.space, config, [config.roles.pd])


def folder_of(config: Config) -> Path:
    """Where a study is kept."""
    return Path(config.work).resolve() / "tuning" / config.tune.name


def _snapshots(config: Config, tables: Tables, space: Space) -> dict[FeatureConfig, str]:
    """The folder of a snapshot for all features that a trial may have, made if it is not there."""
    each = [applied(config, point) for point in space.features()]
    return {one.features: snapshot.snapshot(one, tables).folder for one in each}


def _identity(config: Config, tables: Tables, space: Space) -> dict[str, Any]:
    """What the trials of a study depend on, beside their points."""
    parts = {"seed", "network", "train", "features", "tasks", "roles", "split", "profile"}
    search = {"objectives", "seeds", "folds", "share", "workers"}
    return {
        "space": space.describe(),
        # calibration is no part of a trial
        **config.model_dump(
            mode="json", include=parts, exclude={"train": MAY_CHANGE | {"cross_fit"}}
        ),
        "tune": config.tune.model_dump(mode="json", include=search),
        "lake": config.lake,
        "tables": tables.versions,
        "content": tables.content,
        "encoder": encoder_digest(config.network.text.encoder),
        "architecture": ARCHITECTURE,
    }


def _protected(config: Config, tables: Tables) -> Path | None:
    """A file of the protected attributes, where trials are to be judged by them."""
    if "fairness_gap" not in config.tune.objectives:
        return None
    parts = [tables.read("protected", bucket) for bucket in tables.buckets]
    known = [part for part in parts if part is not None]
    if not known or not config.profile.protected:
        raise UserError("tune.objectives: fairness_gap needs protected attributes in the lake")
    path = folder_of(config) / "protected.parquet"  # there while the trials run
    attributes = config.profile.protected
    # of a user of several periods or sources, what was said last
    last = pl.concat(known).group_by("user_key").agg(pl.col(attributes).drop_nulls().last())
    last.write_parquet(path)
    return path
