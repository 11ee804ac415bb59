"""Excerpts of events: which are read, and as of when."""

import numpy as np
import polars as pl
import pytest

from models.nets.excerpts import between, seen_between


def test_events_are_read_from_start_to_before_end(users: pl.DataFrame) -> None:
    some = users.head(3)
    start_B, end_B = np.array([0, 1, 0]), np.array([1, 2, 0])
    read = between(some, start_B, end_B)
    assert read["events_amount"].to_list() == [[0.0], [1.0], []]
    assert read["events_age_h"][1][0] == some["events_age_h"][1][1]
    assert read["texts"].list.len().to_list() == [0, 0, 0]
    assert read["events_type"].dtype == some["events_type"].dtype


def test_the_time_lies_in_the_gap_after_the_last_event(users: pl.DataFrame) -> None:
    """Events are an hour apart, the last of them an hour before the as-of time."""
    size_B = users["events_type"].list.len().to_numpy().astype(np.int64)
    seen = []
    for end_B in (np.ones_like(size_B), size_B):  # followed by another event, or by none
        read = seen_between(users, np.zeros_like(size_B), end_B, np.random.default_rng(1))
        last = read["events_age_h"].list.last()
        assert last.min() >= 0 and last.max() <= 1
        assert 0.4 < last.mean() < 0.6
        seen.append(last.to_list())
    assert seen[0] == pytest.approx(seen[1], abs=1e-5)  # by the same draws
