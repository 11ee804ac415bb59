"""Pretraining on events: no event after the cut is read, what follows a pattern and whose habits
these are is learned, and a tower is given only to a network that it fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from models.data.features import FeatureConfig
from models.data.schema import UserError
from models.data.stats import Stats
from models.data.vocabulary import Vocabulary
from models.nets.excerpts import batch_of
from models.nets.network import Network, NetworkConfig
from models.nets.pretrain_events import (
    SPEC,
    WEIGHTS,
    EventPretraining,
    TowerSpec,
    check_tower,
    load_tower,
    pretrain_events,
    save_tower,
)
from models.nets.pretrain_next import cut
from models.nets.pretrain_slices import slices

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def users() -> pl.DataFrame:
    """200 users: types 2, 3, 4 in turn, an hour apart, from another one each."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(200):
        n, first = int(rng.integers(2, 30)), int(rng.integers(3))
        rows.append(
            {
                "user_key": user,
                "events_type": [2 + (first + k) % 3 for k in range(n)],
                "events_category": [2] * n,
                "events_amount": [float(k) for k in range(n)],
                "events_age_h": [float(n - k) for k in range(n)],
                "events_gap_h": [0.0] + [1.0] * (n - 1),
                "events_hour": [k % 24 for k in range(n)],
                "events_weekday": [k % 7 for k in range(n)],
            }
        )
    codes, floats = pl.List(pl.Int32), pl.List(pl.Float32)
    return pl.DataFrame(
        rows,
        schema={
            "user_key": pl.Int64, "events_type": codes, "events_category": codes,
            "events_amount": floats, "events_age_h": floats, "events_gap_h": floats,
            "events_hour": codes, "events_weekday": codes,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def spec(network_config: NetworkConfig, feature_config: FeatureConfig, stats: Stats) -> TowerSpec:
    return TowerSpec.of(network_config, feature_config, stats.vocabulary)


def test_a_cut_parts_a_users_events_in_two(users: pl.DataFrame) -> None:
    past, following = cut(users, 5, 3, np.random.default_rng(0))
    for row, before, after in zip(
        users.iter_rows(named=True),
        past.iter_rows(named=True),
        following.iter_rows(named=True),
        strict=True,
    ):
        amounts = before["events_amount"] + after["events_amount"]
        first = int(amounts[0])
        assert amounts == row["events_amount"][first : first + len(amounts)]
        assert 1 <= len(before["events_amount"]) <= 5
        assert 1 <= len(after["events_amount"]) <= 3
        assert len(before["events_amount"]) == 5 or first == 0
        # as of a time after the last event that is read, and at most at the next one
        assert 0 <= before["events_age_h"][-1] <= 1
        assert np.allclose(-np.diff(before["events_age_h"]), 1, atol=1e-5)
    places = past["events_amount"].list.last().to_numpy()
    assert len(set(places)) > 10


def test_what_follows_a_pattern_is_learned(
    users: pl.DataFrame, stats: Stats, spec: TowerSpec
) -> None:
    config = EventPretraining(epochs=12, batch=25, learning_rate=5e-3, horizon=1)
    _, losses = pretrain_events(users, stats, spec, 0.0, config, 1, CPU, lambda *_: None)
    assert losses[-1] < 0.5 * losses[0]


def test_a_slice_is_a_run_of_a_users_events_as_of_its_end(users: pl.DataFrame) -> None:
    drawn = [slices(users, 12, np.random.default_rng(seed)) for seed in range(4)]
    for some in drawn:
        for row, part in zip(users.iter_rows(named=True), some.iter_rows(named=True), strict=True):
            amounts, size = part["events_amount"], len(row["events_amount"])
            first = int(amounts[0])
            assert amounts == row["events_amount"][first : first + len(amounts)]
            assert min(size / 4, 12) <= len(amounts) <= 12
            assert 0 <= part["events_age_h"][-1] <= 1
            assert np.allclose(-np.diff(part["events_age_h"]), 1, atol=1e-5)
            assert part["texts"] == part["texts_age_d"] == []
    ends = [
        sum(some["events_amount"].list.last() + 1 == users["events_type"].list.len())
        for some in drawn
    ]
    assert all(10 < one < 150 for one in ends)  # the last event is seen, and not always
    lengths = drawn[0]["events_amount"].list.len()
    assert lengths.n_unique() > 8 and not lengths.equals(drawn[1]["events_amount"].list.len())


def test_whose_habits_these_are_is_learned(
    users: pl.DataFrame, stats: Stats, spec: TowerSpec
) -> None:
    """Users do one thing each, of three: a third of the others in a batch could be told apart."""
    habit = pl.col("user_key") % 3 + 2
    alike = users.with_columns(
        habit.repeat_by(pl.col("events_type").list.len())
        .cast(pl.List(pl.Int32))
        .alias("events_type")
    )
    config = EventPretraining(objective="slices", epochs=12, batch=30, learning_rate=5e-3)
    tower, losses = pretrain_events(alike, stats, spec, 0.0, config, 1, CPU, lambda *_: None)
    assert losses[-1] < np.log(30 / 3)  # of one that knows the kind, and no more
    one = slices(alike, spec.max_events, np.random.default_rng(9))
    with torch.no_grad():
        vector_BD = tower(batch_of(one, stats))[0]
    vector_BD = torch.nn.functional.normalize(vector_BD, dim=1)
    alike_BB = vector_BD @ vector_BD.T
    kind_B = torch.tensor(one["user_key"].to_list()) % 3
    same_BB = kind_B[:, None] == kind_B
    assert alike_BB[same_BB].mean() > alike_BB[~same_BB].mean() + 0.5


def test_a_user_alone_has_nobody_to_be_told_from(
    users: pl.DataFrame, stats: Stats, spec: TowerSpec
) -> None:
    with pytest.raises(ValidationError, match="batch: 1: expected 2 or more"):
        EventPretraining(objective="slices", batch=1)
    config = EventPretraining(objective="slices")
    with pytest.raises(UserError, match=r"slices: expected two users with two events or more"):
        pretrain_events(users[:1], stats, spec, 0.0, config, 1, CPU, lambda *_: None)


@pytest.mark.parametrize("objective", ["next", "slices"])
def test_the_same_users_give_the_same_tower(
    users: pl.DataFrame, stats: Stats, spec: TowerSpec, objective: Literal["next", "slices"]
) -> None:
    config = EventPretraining(objective=objective, epochs=2, batch=64)
    runs = [pretrain_events(users, stats, spec, 0.1, config, 1, CPU, lambda *_: None) for _ in "ab"]
    assert runs[0][1] == runs[1][1]
    for name, value in runs[0][0].state_dict().items():
        assert torch.equal(runs[1][0].state_dict()[name], value), name


def test_a_network_starts_from_a_tower_that_fits(
    users: pl.DataFrame,
    stats: Stats,
    spec: TowerSpec,
    make_network: Callable[..., Network],
    tmp_path: Path,
) -> None:
    config = EventPretraining(epochs=1, batch=64)
    tower, _ = pretrain_events(users, stats, spec, 0.0, config, 1, CPU, lambda *_: None)
    save_tower(tmp_path, tower, spec)
    network = make_network()
    load_tower(str(tmp_path), network.behaviour, spec)
    for name, value in tower.state_dict().items():
        assert torch.equal(network.behaviour.state_dict()[name], value), name


def test_a_folder_without_a_tower_is_refused(tmp_path: Path, spec: TowerSpec) -> None:
    for folder in (tmp_path / "none", tmp_path):
        (tmp_path / SPEC).write_text("{}", encoding="utf-8")
        with pytest.raises(UserError, match=r"network\.behaviour\.pretrained .*holds no tower"):
            check_tower(str(folder), spec)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 32),
        ("max_events", 3),
        ("event_types", ("pay", "order")),
        ("categories", ()),
        ("architecture", 1),
    ],
)
def test_a_tower_that_does_not_fit_is_refused(
    tmp_path: Path, spec: TowerSpec, field: str, value: object
) -> None:
    other = spec.model_copy(update={field: value})
    save_tower(tmp_path, other.tower(0.0), other)
    with pytest.raises(UserError, match=f"another {field} than this run's") as refused:
        check_tower(str(tmp_path), spec)
    assert "\n" not in str(refused.value)


def test_damaged_weights_are_refused(tmp_path: Path, spec: TowerSpec) -> None:
    tower = spec.tower(0.0)
    save_tower(tmp_path, tower, spec)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"network\.behaviour\.pretrained") as refused:
        load_tower(str(tmp_path), tower, spec)
    assert "\n" not in str(refused.value)


def test_where_it_started_from_is_no_part_of_what_fits(
    network_config: NetworkConfig, feature_config: FeatureConfig, vocabulary: Vocabulary
) -> None:
    behaviour = network_config.behaviour.model_copy(update={"pretrained": "somewhere"})
    started = network_config.model_copy(update={"behaviour": behaviour})
    assert TowerSpec.of(started, feature_config, vocabulary) == TowerSpec.of(
        network_config, feature_config, vocabulary
    )
