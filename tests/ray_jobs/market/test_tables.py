import polars as pl
import pytest

from ray_jobs.market.block import Block, simulate_block
from ray_jobs.market.tables import SCHEMAS, block_tables
from ray_jobs.market.world import BLOCK_USERS, CATEGORIES, KINDS, MODALITIES, SimulateConfig


@pytest.fixture(scope="module")
def tables(block: Block) -> dict[str, pl.DataFrame]:
    return block_tables(block)


def test_columns_and_types(tables: dict[str, pl.DataFrame]) -> None:
    assert {name: dict(frame.schema) for name, frame in tables.items()} == SCHEMAS


def test_nothing_is_missing_but_what_may_be(tables: dict[str, pl.DataFrame]) -> None:
    may_be_null = {
        "events": {"item", "category", "counterparty", "amount", "text"},
        "edges": {"valid_to"},
        "labels": {"proposed_amount", "proposed_category"},
    }
    for name, frame in tables.items():
        missing = {c for c in frame.columns if frame[c].null_count() > 0}
        assert missing == may_be_null.get(name, set())
        floats = frame.select(pl.col(pl.Float64).is_nan().any())
        assert not any(floats.row(0)) if floats.width else True


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("events", ["event_id"]),
        ("users", ["user_id", "valid_from"]),
        ("protected", ["user_id"]),
        ("edges", ["user_id", "other_id", "kind"]),
        ("labels", ["user_id", "task", "as_of"]),
        ("oracle", ["user_id", "task", "as_of"]),
    ],
)
def test_keys_are_unique(tables: dict[str, pl.DataFrame], name: str, key: list[str]) -> None:
    assert not tables[name].select(key).is_duplicated().any()


def test_ids_of_another_block_are_others(
    config: SimulateConfig, tables: dict[str, pl.DataFrame]
) -> None:
    other = block_tables(simulate_block(config, 1))
    for name, column in (("protected", "user_id"), ("events", "event_id"), ("edges", "other_id")):
        assert not set(tables[name][column]) & set(other[name][column])


def test_values_are_named(tables: dict[str, pl.DataFrame]) -> None:
    events = tables["events"]
    assert set(events["type"]) == set(KINDS)
    assert set(events["category"].drop_nulls()) == set(CATEGORIES)
    assert set(events["counterparty"].drop_nulls().str.extract(r"^(\w+)-\d+$")) == {
        "seller", "utility", "card",
    }  # fmt: skip
    assert set(tables["edges"]["kind"]) == {"device", "address", "referral"}
    assert set(tables["edges"]["other_kind"]) == {"device", "address", "user"}
    users = set(tables["protected"]["user_id"])
    referrals = tables["edges"].filter(pl.col("kind") == "referral")
    assert len(users) == BLOCK_USERS
    assert set(referrals["other_id"]) <= users


def test_texts_carry_no_ids(tables: dict[str, pl.DataFrame]) -> None:
    texts = tables["events"]["text"].drop_nulls()
    assert texts.len() > 1000
    assert not texts.str.contains(r"\d").any()


def test_labels_are_what_the_oracle_knows_and_was_seen(tables: dict[str, pl.DataFrame]) -> None:
    key = ["user_id", "task", "as_of"]
    seen = tables["oracle"].filter(pl.col("observed"), pl.col("task") != "spend_30d")
    both = tables["labels"].join(seen, on=key, how="full", coalesce=True, suffix="_true")
    assert both.height == tables["labels"].height == seen.height
    assert (both["value"] == both["value_true"]).all()
    matured = both["matured_at"] - both["as_of"]
    assert (matured.dt.total_days() == 30).all()


def test_half_of_the_labels_have_a_proposal_the_same_for_both_tasks(
    tables: dict[str, pl.DataFrame],
) -> None:
    labels = tables["labels"]
    assert 0.45 < labels["proposed_amount"].is_not_null().mean() < 0.55
    assert (labels["proposed_amount"].is_null() == labels["proposed_category"].is_null()).all()
    asked = labels.group_by("user_id", "as_of").agg(pl.col("proposed_amount").n_unique())
    assert (asked["proposed_amount"] == 1).all()


def test_spend_is_the_sum_of_buys_in_the_outcome_window(tables: dict[str, pl.DataFrame]) -> None:
    buys = (
        tables["events"]
        .filter(pl.col("type") == "buy")
        .select("user_id", "amount", utc=pl.col("time") - pl.duration(hours=8))
    )
    truth = tables["oracle"].filter(pl.col("task") == "spend_30d")
    inside = truth.join(buys, on="user_id").filter(
        pl.col("utc") >= pl.col("as_of"), pl.col("utc") < pl.col("as_of") + pl.duration(days=30)
    )
    sums = inside.group_by("user_id", "as_of").agg(pl.col("amount").sum())
    both = truth.join(sums, on=["user_id", "as_of"], how="left").fill_null(0)
    assert (both["value"] - both["amount"]).abs().max() < 1e-6


def test_everybody_with_an_event_before_has_a_label(tables: dict[str, pl.DataFrame]) -> None:
    first = tables["events"].group_by("user_id").agg((pl.col("time") - pl.duration(hours=8)).min())
    for (as_of,), rows in tables["labels"].partition_by("as_of", as_dict=True).items():
        known = first.filter(pl.col("time") < as_of)
        assert set(rows["user_id"]) == set(known["user_id"])


def test_the_oracle_without_a_modality(tables: dict[str, pl.DataFrame]) -> None:
    oracle = tables["oracle"]
    risks = oracle.filter(pl.col("task") != "spend_30d")
    columns = ["probability", *(f"without_{modality}" for modality in MODALITIES)]
    assert risks.select(pl.col(columns).is_between(0, 1, closed="none").all()).row(0) == (True,) * 5
    default = oracle.filter(pl.col("task") == "default")
    assert all((default[c] != default["probability"]).any() for c in columns[1:])


def test_a_single_user() -> None:
    tables = block_tables(simulate_block(SimulateConfig(users=1, seed=3), 0))
    assert {name: dict(frame.schema) for name, frame in tables.items()} == SCHEMAS
    assert tables["protected"].height == 1


def test_profiles_have_history(tables: dict[str, pl.DataFrame]) -> None:
    users = tables["users"]
    assert BLOCK_USERS < users.height < 1.15 * BLOCK_USERS
    assert users.sort("user_id", "valid_from").equals(users)
