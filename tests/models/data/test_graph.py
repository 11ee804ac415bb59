from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.graph import MEASURES, graph_snapshot, social_columns

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


@settings(max_examples=60)
@given(
    st.lists(EDGE, max_size=25),
    st.lists(st.tuples(USERS, st.sampled_from([0.0, 1.0]), TIMES), max_size=8),
)
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
