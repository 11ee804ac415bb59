"""The configuration: strict, with one clear line for every mistake."""

from pathlib import Path

import pytest
import yaml

from models.data.schema import UserError
from ray_jobs.config import BUILT_IN, Config, load


def changed(tmp_path: Path, **changes: object) -> str:
    tree = yaml.safe_load((BUILT_IN / "demo.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree | changes), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", sorted(p.stem for p in BUILT_IN.glob("*.yaml")))
def test_built_in_configurations_are_valid(name: str) -> None:
    config = load(name)
    config.split.check(config.tasks)
    assert Config.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.loop.epcohs=3", "train.loop.epcohs: unknown key; the nearest is 'epochs'"),
        ("sources.events.colums=1", "sources.events.colums: unknown key; the nearest is 'columns'"),
        ("bucket=4", "bucket: unknown key; the nearest is 'buckets'"),
        ("buckets=3", "buckets: 3 is not a power of two"),
        ("roles.pd=defualt", "roles.pd: no task 'defualt'; there is default, fraud, spend_30d"),
        ("roles.pd=spend_30d", "roles.pd: task 'spend_30d' must be binary"),
        ("train.workers=two", "train.workers: expected a number, or [least, most], not 'two'"),
        ("sources.events.timezone=Mars/Olympus", "unknown time zone 'Mars/Olympus'"),
        (
            "network.behaviour={encoder: transformer, heads: 5}",
            "network: width 64 is no multiple of 5 heads",
        ),
        (
            "network.loss.binary.fruad.focal=2",
            "network.loss.binary: no binary task 'fruad'; there is default, fraud",
        ),
        (
            "train.resample={task: spend_30d, method: over}",
            "train.resample.task: no binary task 'spend_30d'; there is default, fraud",
        ),
        ("network.loss.binary.fraud.focl=2", "focl: unknown key; the nearest is 'focal'"),
        ("train.cross_fit=5", "train.cross_fit: for split.schedule given; where roles stand"),
        ("train.loop.learning_rate=.nan", "train.loop.learning_rate: Input should be"),
        ("serve.min_replicas=8", "serve: min_replicas: 8 is more than max_replicas 4"),
        ("tasks.score={kind: binary}", "tasks.score: the name of another column of the answer"),
        ("profile.numeric=[events_type]", "profile: 'events_type' is the name of another column"),
        ("profile.protected=[sex, source]", "profile.protected: 'source' is the name of another"),
        ("profile.protected=[sex, sex]", "profile.protected: 'sex' is the name of another column"),
        ("noequals", "--set noequals: expected key=value"),
        ("seed.a=1", "--set seed.a=1: 'seed' is not a mapping"),
    ],
)
def test_one_clear_line(override: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        load("demo", [override])
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "tune.storage=postgresql+psycopg2://u:hunter2@h/db",
        "tune.storage=postgresql://u:hunter2/or@h:5432/db",
        "tune.storage=mysql://h/db?charset=utf8&password=hunter2",
        "sources.users.path=s3://anna:hunter2@bucket/users/*.parquet",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_shown(override: str) -> None:
    with pytest.raises(UserError, match=r"no password in a URL, .* such as PGPASSWORD") as refused:
        load("demo", [override])
    assert override.partition("=")[0] in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "tune.storage=postgresql://u@h:5432/db?sslmode=require",
        "tune.storage=sqlite:///a:b@c.db",
        "sources.users.path=s3://bucket/a:b@c.parquet?region=eu-west-1",
    ],
)
def test_a_url_without_a_password_is_none_with_one(override: str) -> None:
    assert load("demo", [override])


def test_a_mutable_profile_without_history_is_refused(tmp_path: Path) -> None:
    columns = {"user_id": "user_id", "income_declared": "income_declared"}
    sources = yaml.safe_load((BUILT_IN / "demo.yaml").read_text(encoding="utf-8"))["sources"]
    sources["users"] = {"table": "users", "path": "users.csv", "columns": columns}
    with pytest.raises(UserError, match="without valid_from has no history"):
        load(changed(tmp_path, sources=sources))
    sources["users"]["immutable"] = True
    assert load(changed(tmp_path, sources=sources)).sources["users"].immutable


def test_sources_in_two_currencies_are_refused(tmp_path: Path) -> None:
    sources = yaml.safe_load((BUILT_IN / "demo.yaml").read_text(encoding="utf-8"))["sources"]
    sources["shop"] = {**sources["events"], "currency": "cny"}
    assert len(load(changed(tmp_path, sources=sources)).sources) == 6
    sources["shop"]["currency"] = "USD"
    with pytest.raises(
        UserError, match=r"sources\.shop\.currency: USD, but sources\.events has CNY"
    ):
        load(changed(tmp_path, sources=sources))


def test_roles_must_lie_an_outcome_window_apart() -> None:
    config = load("demo", ["split.select.first=2024-05-15", "split.select.last=2024-05-15"])
    with pytest.raises(UserError, match=r"split\.select\.first 2024-05-15: must lie at least one"):
        config.split.check(config.tasks)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a: [", "not YAML"),
        (b"[1, 2]", "a mapping of keys was expected"),
        ("lake: données".encode("latin-1"), "not UTF-8 text"),
        (None, "no such"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes | None, line: str) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=line):
        load(str(path))
