"""Users to pretrain on, and the tower that is to learn from them."""

import numpy as np
import polars as pl
import pytest

from models.data.features import FeatureConfig
from models.data.stats import Stats
from models.nets.config import NetworkConfig
from models.nets.pretrain_events import TowerSpec


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def tower_spec(
    network_config: NetworkConfig, feature_config: FeatureConfig, stats: Stats
) -> TowerSpec:
    return TowerSpec.of(network_config, feature_config, stats.vocabulary)
