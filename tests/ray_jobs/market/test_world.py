from dataclasses import replace
from datetime import date, datetime

import pytest
from pydantic import ValidationError

from ray_jobs.market import world
from ray_jobs.market.world import SimulateConfig, world_sha256

# Another hash is another world: raise WORLD_VERSION, and compare no score with one of before.
FROZEN = {1: "55c21e7e24959bf954eb7eff73cf8d3464f77471b1e8eef32243f49161801d66"}


def test_the_world_is_frozen() -> None:
    assert world_sha256() == FROZEN[world.WORLD_VERSION]


def test_the_hash_covers_parameters_and_phrases(monkeypatch: pytest.MonkeyPatch) -> None:
    before = world_sha256()
    fraud = replace(world.WORLD.fraud, night=world.WORLD.fraud.night + 1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(world, "WORLD", replace(world.WORLD, fraud=fraud))
        assert world_sha256() != before
    monkeypatch.setattr(world.phrases_zh, "FILLERS", ("你好",))
    assert world_sha256() != before


def test_default_dates() -> None:
    config = SimulateConfig(users=8000, seed=1)
    assert config.month_starts()[0] == datetime(2023, 11, 1)
    assert config.month_starts()[-1] == datetime(2024, 9, 1)
    assert config.as_ofs() == [datetime(2024, month, 1) for month in range(1, 9)]


def test_an_as_of_date_has_its_whole_outcome_window() -> None:
    # 30 days from the first of February reach into March.
    until_march = SimulateConfig(users=1, seed=1, start=date(2022, 11, 1), months=4)
    assert until_march.as_ofs() == [datetime(2023, 1, 1)]
    until_april = SimulateConfig(users=1, seed=1, start=date(2022, 11, 1), months=5)
    assert until_april.as_ofs() == [datetime(2023, month, 1) for month in (1, 2, 3)]


@pytest.mark.parametrize(("users", "blocks"), [(1, 1), (500, 1), (501, 2), (8000, 16)])
def test_blocks(users: int, blocks: int) -> None:
    assert SimulateConfig(users=users, seed=0).blocks == blocks


def test_a_date_may_be_a_string() -> None:
    config = SimulateConfig.model_validate({"users": 5, "seed": 1, "start": "2024-01-01"})
    assert config.start == date(2024, 1, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"users": 0}, "users"),
        ({"users": "many"}, "users"),
        ({"seed": -1}, "seed"),
        ({"start": "2023-11-15"}, "first day of a month"),
        ({"start": "2022-12-01", "months": 3}, "no as-of date"),
        ({"months": 2}, "months"),
        ({"events_per_month": float("nan")}, "events_per_month"),
        ({"language": "fr"}, "language"),
        ({"selection": True}, "selection"),
        ({"user": 5}, "user"),
    ],
)
def test_refuses(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SimulateConfig.model_validate({"users": 5, "seed": 1, **change})
