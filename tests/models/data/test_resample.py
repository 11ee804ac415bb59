"""Resampling of a binary task's rows: the ratio asked for, nothing lost, nothing favoured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from models.data.resample import ResampleConfig, resampled, resampled_counts

LABELS = st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, float("nan")]), max_size=80)
CONFIGS = st.builds(
    ResampleConfig,
    task=st.just("fraud"),
    method=st.sampled_from(["over", "under"]),
    ratio=st.floats(0.05, 1.0),
)


def counts(labels: NDArray[np.float64]) -> tuple[int, int, int]:
    return int((labels == 0).sum()), int((labels == 1).sum()), int(np.isnan(labels).sum())


@given(LABELS, CONFIGS, st.integers(0, 1000))
def test_the_ratio_is_reached_and_unknown_labels_stay(
    labels: list[float], config: ResampleConfig, seed: int
) -> None:
    before = np.array(labels, dtype=np.float64)
    rows = resampled(before, config, seed)
    assert (np.diff(rows) >= 0).all()
    small, large = sorted(counts(before)[:2])
    after = counts(before[rows])
    assert sorted(after[:2]) == sorted(resampled_counts(small, large, config))
    assert after[2] == counts(before)[2]
    times = np.bincount(rows, minlength=len(before))
    for value in (0.0, 1.0):
        own = times[before == value]
        assert len(own) == 0 or own.max() - own.min() <= 1
    if config.method == "over":
        assert (times >= 1).all()
    else:
        assert (times <= 1).all()


@given(LABELS.filter(len), CONFIGS, st.integers(0, 1000), st.integers(0, 200))
def test_so_many_rows_whatever_the_labels(
    labels: list[float], config: ResampleConfig, seed: int, count: int
) -> None:
    before = np.array(labels, dtype=np.float64)
    rows = resampled(before, config, seed, count)
    assert len(rows) == count and (np.diff(rows) >= 0).all()
    times = np.bincount(rows, minlength=len(before))
    free = np.bincount(resampled(before, config, seed), minlength=len(before))
    assert (times[free == 0] == 0).all()  # what is left out stays so
    assert (abs(times - free * count / free.sum()) < np.maximum(free, 1)).all()


def test_over_and_under() -> None:
    labels = np.array([0.0] * 90 + [1.0] * 10)
    over = resampled(labels, ResampleConfig(task="fraud", method="over", ratio=0.5), 1)
    under = resampled(labels, ResampleConfig(task="fraud", method="under", ratio=0.5), 1)
    assert counts(labels[over])[:2] == (90, 45)
    assert counts(labels[under])[:2] == (20, 10)


def test_the_smaller_class_may_be_the_positive_or_the_negative() -> None:
    config = ResampleConfig(task="fraud", method="under")
    labels = np.array([0.0] * 3 + [1.0] * 30)
    assert counts(labels[resampled(labels, config, 1)])[:2] == (3, 3)


@pytest.mark.parametrize("method", ["over", "under"])
@pytest.mark.parametrize("label", [0.0, 1.0, float("nan")])
def test_with_one_class_nothing_changes(method: str, label: float) -> None:
    config = ResampleConfig.model_validate({"task": "fraud", "method": method})
    assert resampled(np.full(7, label), config, 1).tolist() == list(range(7))


def test_it_is_drawn_by_the_seed() -> None:
    labels = np.array([0.0] * 90 + [1.0] * 10)
    config = ResampleConfig(task="fraud", method="under")
    drawn = [resampled(labels, config, seed).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "bad", [{"method": "smote"}, {"ratio": 0}, {"ratio": 1.5}, {"task": None}, {"share": 0.5}]
)
def test_an_impossible_configuration_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ResampleConfig.model_validate({"task": "fraud", "method": "over", **bad})
