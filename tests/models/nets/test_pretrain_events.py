"""Next-event prediction: no event after the cut is read, what follows a pattern is learned, and a
tower is given only to a network that it fits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models.data.features import FeatureConfig
from models.data.schema import UserError
from models.data.stats import Stats
from models.data.vocabulary import Vocabulary
from models.nets.network import Network, NetworkConfig
from models.nets.pretrain_events import (
    SPEC,
    WEIGHTS,
    EventPretraining,
    TowerSpec,
    check_tower,
    cut,
    load_tower,
    pretrain_events,
    save_tower,
)

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


def test_the_same_users_give_the_same_tower(
    users: pl.DataFrame, stats: Stats, spec: TowerSpec
) -> None:
    config = EventPretraining(epochs=2, batch=64)
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
