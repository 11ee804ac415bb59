"""Towers that are pretrained on events: the same twice, and given only to a network that fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

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
    load_tower,
    pretrain_events,
    save_tower,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("objective", ["next", "slices"])
def test_the_same_users_give_the_same_tower(
    users: pl.DataFrame, stats: Stats, tower_spec: TowerSpec, objective: Literal["next", "slices"]
) -> None:
    config = EventPretraining(objective=objective, epochs=2, batch=64)
    runs = [
        pretrain_events(users, stats, tower_spec, 0.1, config, 1, CPU, lambda *_: None)
        for _ in "ab"
    ]
    assert runs[0][1] == runs[1][1]
    for name, value in runs[0][0].state_dict().items():
        assert torch.equal(runs[1][0].state_dict()[name], value), name


def test_a_network_starts_from_a_tower_that_fits(
    users: pl.DataFrame,
    stats: Stats,
    tower_spec: TowerSpec,
    make_network: Callable[..., Network],
    tmp_path: Path,
) -> None:
    config = EventPretraining(epochs=1, batch=64)
    tower, _ = pretrain_events(users, stats, tower_spec, 0.0, config, 1, CPU, lambda *_: None)
    save_tower(tmp_path, tower, tower_spec)
    network = make_network()
    load_tower(str(tmp_path), network.behaviour, tower_spec)
    for name, value in tower.state_dict().items():
        assert torch.equal(network.behaviour.state_dict()[name], value), name


def test_a_folder_without_a_tower_is_refused(tmp_path: Path, tower_spec: TowerSpec) -> None:
    for folder in (tmp_path / "none", tmp_path):
        (tmp_path / SPEC).write_text("{}", encoding="utf-8")
        with pytest.raises(UserError, match=r"network\.behaviour\.pretrained .*holds no tower"):
            check_tower(str(folder), tower_spec)


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
    tmp_path: Path, tower_spec: TowerSpec, field: str, value: object
) -> None:
    other = tower_spec.model_copy(update={field: value})
    save_tower(tmp_path, other.tower(0.0), other)
    with pytest.raises(UserError, match=f"another {field} than this run's") as refused:
        check_tower(str(tmp_path), tower_spec)
    assert "\n" not in str(refused.value)


def test_damaged_weights_are_refused(tmp_path: Path, tower_spec: TowerSpec) -> None:
    tower = tower_spec.tower(0.0)
    save_tower(tmp_path, tower, tower_spec)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"network\.behaviour\.pretrained") as refused:
        load_tower(str(tmp_path), tower, tower_spec)
    assert "\n" not in str(refused.value)


def test_where_it_started_from_is_no_part_of_what_fits(
    network_config: NetworkConfig, feature_config: FeatureConfig, vocabulary: Vocabulary
) -> None:
    behaviour = network_config.behaviour.model_copy(update={"pretrained": "somewhere"})
    started = network_config.model_copy(update={"behaviour": behaviour})
    assert TowerSpec.of(started, feature_config, vocabulary) == TowerSpec.of(
        network_config, feature_config, vocabulary
    )
