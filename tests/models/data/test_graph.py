from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.graph import (
    MEASURES,
    NODE,
    graph_snapshot,
    hub_account,
    members,
    node_sums,
    other_ends,
    partial_sums,
    social_columns,
    user_measures,
)

Make = Callable[..., pl.DataFrame]
Records = list[dict[str, Any]]

DATE = datetime(2024, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
RELATIONS = ("device", "referral")


def outcomes_of(*known: tuple[int, float, datetime]) -> pl.DataFrame:
    time = pl.Datetime("us", "UTC")
    schema = {"user_key": pl.Int64, "value": pl.Float64, "matured_at": time}
    return pl.DataFrame(list(known), schema=schema, orient="row")


NO_OUTCOMES = outcomes_of()


def measures(frame: pl.DataFrame, relation: str) -> dict[int, tuple[float, ...]]:
    """(nodes, shared, max_shared, known, bad) of each user."""
    columns = [f"{relation}_{measure}" for measure in MEASURES]
    return {row[0]: row[1:] for row in frame.select("user_key", *columns).iter_rows()}


def naive(
    edges: Records, outcomes: list[tuple[int, float, datetime]], relation: str
) -> dict[int, tuple[float, ...]]:
    """The same by projection: for each user and node, all the others there, one by one."""
    nodes: dict[Any, set[int]] = defaultdict(set)
    tied: set[int] = set()
    for edge in edges:
        ends = edge["valid_to"]
        if edge["valid_from"] >= DATE or edge["available_at"] > DATE or (ends and ends <= DATE):
            continue
        members = {edge["user_key"]}
        node = ("shared", edge["dst"])
        if edge["dst_kind"] == "user":
            members.add(edge["dst"])
            node = ("pair", frozenset(members))
        tied |= members
        if edge["relation"] == relation:
            nodes[node] |= members
    known: dict[int, bool] = {}
    for user, value, matured_at in outcomes:
        if matured_at <= DATE:
            known[user] = known.get(user, False) or value > 0
    result = {}
    for user in tied:
        others = [members - {user} for members in nodes.values() if user in members]
        result[user] = (
            float(len(others)),
            float(sum(map(len, others))),
            float(max(map(len, others), default=0)),
            float(sum(other in known for there in others for other in there)),
            float(sum(known.get(other, False) for there in others for other in there)),
        )
    return result


TIMES = st.sampled_from([DATE - 40 * DAY, DATE - DAY, DATE, DATE + DAY])
USERS = st.integers(1, 7)
ENDS = st.one_of(
    st.tuples(st.sampled_from([101, 102, 103]), st.sampled_from(["device", "address"])),
    st.tuples(USERS, st.just("user")),
)
EDGE = st.builds(
    lambda user, end, relation, start, known, stop: {
        "user_key": user,
        "dst": end[0] + (100 if end[1] == "address" else 0),
        "dst_kind": end[1],
        "relation": relation,
        "valid_from": start,
        "available_at": known,
        "valid_to": stop,
    },
    USERS,
    ENDS,
    st.sampled_from(RELATIONS),
    TIMES | st.just(DATE - DAY),
    TIMES | st.just(DATE - DAY),
    st.none() | TIMES,
)


OUTCOMES = st.lists(st.tuples(USERS, st.sampled_from([0.0, 1.0]), TIMES), max_size=8)


@settings(max_examples=60)
@given(st.lists(EDGE, max_size=25), OUTCOMES)
def test_it_equals_a_projection(
    make_edges: Make, edges: Records, outcomes: list[tuple[int, float, datetime]]
) -> None:
    given_edges, given_outcomes = make_edges(edges), outcomes_of(*outcomes)
    snapshot = graph_snapshot(given_edges, given_outcomes, DATE, RELATIONS)
    for relation in RELATIONS:
        assert measures(snapshot, relation) == naive(edges, outcomes, relation)
    again = graph_snapshot(given_edges.reverse(), given_outcomes.reverse(), DATE, RELATIONS)
    assert again.equals(snapshot)


def test_a_users_own_outcome_does_not_count(make_edges: Make) -> None:
    edges = make_edges({"user_key": user, "dst": 100} for user in (1, 2, 3))
    snapshot = graph_snapshot(edges, outcomes_of((1, 1.0, DATE), (2, 0.0, DATE)), DATE, RELATIONS)
    assert measures(snapshot, "device") == {
        1: (1, 2, 2, 1, 0),
        2: (1, 2, 2, 1, 1),
        3: (1, 2, 2, 2, 1),
    }


@pytest.mark.parametrize(
    ("edge", "counts"),
    [
        ({"valid_from": DATE - DAY}, True),
        ({"valid_from": DATE}, False),
        ({"available_at": DATE}, True),
        ({"available_at": DATE + DAY}, False),
        ({"valid_to": DATE + DAY}, True),
        ({"valid_to": DATE}, False),
    ],
)
def test_only_ties_valid_and_known_at_the_date_count(
    make_edges: Make, edge: dict[str, Any], counts: bool
) -> None:
    edges = make_edges([{"user_key": 1, "dst": 100}, {"user_key": 2, "dst": 100, **edge}])
    found = measures(graph_snapshot(edges, NO_OUTCOMES, DATE, RELATIONS), "device")
    assert found[1] == (1, counts, counts, 0, 0)
    assert (2 in found) == counts


def test_only_matured_outcomes_count_and_a_bad_one_outweighs(make_edges: Make) -> None:
    edges = make_edges({"user_key": user, "dst": 100} for user in (1, 2, 3))
    later = DATE + timedelta(microseconds=1)
    outcomes = outcomes_of((2, 0.0, DATE), (2, 1.0, later), (3, 1.0, DATE), (3, 0.0, DATE))
    assert measures(graph_snapshot(edges, outcomes, DATE, RELATIONS), "device")[1][3:] == (2, 1)
    assert measures(graph_snapshot(edges, outcomes, later, RELATIONS), "device")[1][3:] == (2, 2)


def test_ties_between_users_count_both_ways_and_once(make_edges: Make) -> None:
    tie = {"dst_kind": "user", "relation": "referral"}
    edges = make_edges(
        [
            {"user_key": 1, "dst": 2, **tie},
            {"user_key": 2, "dst": 1, **tie},
            {"user_key": 3, "dst": 1, **tie},
        ]
    )
    snapshot = graph_snapshot(edges, outcomes_of((1, 1.0, DATE)), DATE, RELATIONS)
    assert measures(snapshot, "referral") == {
        1: (2, 2, 1, 0, 0),
        2: (1, 1, 1, 1, 1),
        3: (1, 1, 1, 1, 1),
    }
    assert set(measures(snapshot, "device").values()) == {(0, 0, 0, 0, 0)}


def test_a_tie_stated_twice_counts_once(make_edges: Make) -> None:
    twice = [{"user_key": 1, "dst": 100, "valid_from": DATE - k * DAY} for k in (1, 2)]
    edges = make_edges([*twice, {"user_key": 2, "dst": 100}])
    found = measures(graph_snapshot(edges, NO_OUTCOMES, DATE, RELATIONS), "device")
    assert found == {1: (1, 1, 1, 0, 0), 2: (1, 1, 1, 0, 0)}


@pytest.mark.parametrize("relations", [RELATIONS, ()])
def test_columns_and_no_ties_at_all(make_edges: Make, relations: tuple[str, ...]) -> None:
    snapshot = graph_snapshot(make_edges([]), NO_OUTCOMES, DATE, relations)
    assert snapshot.columns == ["user_key", "graph_date", *social_columns(relations)]
    assert snapshot.is_empty()
    one = graph_snapshot(make_edges([{"user_key": 1, "dst": 100}]), NO_OUTCOMES, DATE, relations)
    assert one.schema == snapshot.schema
    assert one["graph_date"].to_list() == [DATE]


def split(frame: pl.DataFrame, at: pl.Series, parts: int) -> list[pl.DataFrame]:
    """A frame by a number of each row, modulo the parts."""
    return [frame.filter(at.cast(pl.Int64) % parts == part) for part in range(parts)]


def in_parts(
    edges: pl.DataFrame, outcomes: pl.DataFrame, users: int, nodes: int, cap: int
) -> pl.DataFrame:
    """The snapshot, made of so many parts of users and of nodes that know nothing of each other."""
    ends = other_ends(edges)
    parts = zip(
        split(edges.select(ends.columns), edges["user_key"], users),
        split(ends, ends["user_key"], users),
        split(outcomes, outcomes["user_key"], users),
        strict=True,
    )
    tied = [members(pl.concat([own, came]), known, DATE) for own, came, known in parts]
    told = pl.concat([partial_sums(part, cap) for part in tied])
    sums = [node_sums(part, cap) for part in split(told, told["low"] + told["high"], nodes)]
    asked = [pl.concat(sums).join(part.select(NODE).unique(), on=NODE, how="semi") for part in tied]
    pairs = zip(tied, asked, strict=True)
    measured = [user_measures(part, sums, DATE, RELATIONS) for part, sums in pairs]
    return pl.concat(measured).sort("user_key")


@settings(max_examples=60)
@given(
    st.lists(EDGE, max_size=25),
    OUTCOMES,
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([2, 3, 100]),
)
def test_any_number_of_parts_gives_the_same(
    make_edges: Make,
    edges: Records,
    outcomes: list[tuple[int, float, datetime]],
    users: int,
    nodes: int,
    cap: int,
) -> None:
    given_edges, given_outcomes = make_edges(edges), outcomes_of(*outcomes)
    whole = graph_snapshot(given_edges, given_outcomes, DATE, RELATIONS, cap)
    assert in_parts(given_edges, given_outcomes, users, nodes, cap).equals(whole)
    assert in_parts(given_edges.reverse(), given_outcomes, users, nodes, cap).equals(whole)


def hub(make_edges: Make, size: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Users 1 … size at device 0; every second outcome is known, of these every third is bad."""
    edges = make_edges({"user_key": user, "dst": 0} for user in range(1, size + 1))
    known = [(user, float(user % 3 == 0), DATE) for user in range(1, size + 1) if user % 2 == 0]
    return edges, outcomes_of(*known)


def test_a_hub_keeps_its_degree_and_its_outcomes_are_estimated(make_edges: Make) -> None:
    size, cap = 6000, 1500
    edges, outcomes = hub(make_edges, size)
    frame = graph_snapshot(edges, outcomes, DATE, RELATIONS, cap)
    assert frame.height == size
    assert set(frame["device_shared"]) == set(frame["device_max_shared"]) == {size - 1.0}
    assert set(frame["device_nodes"]) == {1.0}
    # four standard errors of a sample of 1,500, not less than one of them by luck
    assert frame["device_known"].to_numpy() == pytest.approx(size / 2, abs=4 * 0.013 * size)
    assert frame["device_bad"].to_numpy() == pytest.approx(size / 6, abs=4 * 0.0097 * size)
    assert (frame["device_bad"] <= frame["device_known"]).all()
    assert frame["device_known"].n_unique() > 1  # less one's own part, if one was counted
    exact = graph_snapshot(edges, outcomes, DATE, RELATIONS, size)
    assert measures(exact, "device")[1] == (1, size - 1, size - 1, size / 2, size / 6)
    assert graph_snapshot(edges.reverse(), outcomes, DATE, RELATIONS, cap).equals(frame)


def test_who_is_counted_at_a_hub_is_nobody_in_particular(make_edges: Make) -> None:
    """Neither the first nor the last, other ones at another hub, the same when a user joins."""
    edges, outcomes = hub(make_edges, 1000)

    def counted(given_edges: pl.DataFrame) -> set[int]:
        tied = members(given_edges, outcomes, DATE)
        last = node_sums(partial_sums(tied, 100), 100)["last"][0]
        return set(tied.filter(pl.col("draw") <= last)["user_key"])

    here = counted(edges)
    assert len(here) == 100
    assert 350 < sum(here) / 100 < 650
    there = counted(edges.with_columns(dst=pl.lit(7, dtype=pl.Int64)))
    assert len(here & there) < 30
    more = pl.concat([edges, make_edges([{"user_key": 1001, "dst": 0}])])
    assert len(here & counted(more)) >= 99


def test_the_account_of_hubs(make_edges: Make) -> None:
    records = [{"user_key": user, "dst": 9 - user % 3} for user in range(1, 20)]
    tied = members(make_edges([*records, {"user_key": 1, "dst": 2}]), NO_OUTCOMES, DATE)
    sums = node_sums(partial_sums(tied, 6), 6)
    assert hub_account(sums) == {"hubs": 1, "ties_left_out": 1}
    assert sums["users"].sum() == 20
    assert hub_account(sums.clear()) == {"hubs": 0, "ties_left_out": 0}


def test_a_user_outside_the_sample_leaves_it_as_it_is(make_edges: Make) -> None:
    """Each of ten users knows of 9 others; of 4 counted, those counted themselves see 3."""
    edges = make_edges({"user_key": user, "dst": 0} for user in range(10))
    outcomes = outcomes_of(*((user, 1.0, DATE) for user in range(10)))
    frame = graph_snapshot(edges, outcomes, DATE, RELATIONS, 4)
    assert set(measures(frame, "device").values()) == {(1.0, 9.0, 9.0, 9.0, 9.0)}
