"""Keys are the same on every machine, and tell apart what differs."""

import hashlib
import hmac
from datetime import date, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.keys import (
    check_identities,
    erased_hashes,
    id_hash,
    keys_of,
    row_hash,
    secret_check,
    user_key,
)
from models.data.schema import UserError

SECRET = b"a secret of the tests"


def test_user_key_is_the_head_of_an_hmac() -> None:
    digest = hmac.new(SECRET, b"17850", hashlib.sha256).digest()
    assert user_key(SECRET, "17850") == int.from_bytes(digest[:8], "big", signed=True)
    assert user_key(SECRET, "17850") == 6_300_774_124_881_988_199


def test_keys_follow_the_rows_and_nulls_stay() -> None:
    keys = keys_of(SECRET, pl.Series("u", ["b", None, "a", "b"]))
    expected = [user_key(SECRET, "b"), None, user_key(SECRET, "a"), user_key(SECRET, "b")]
    assert keys.to_list() == expected
    assert keys.dtype == pl.Int64
    assert keys_of(SECRET, pl.Series("u", [], dtype=pl.String)).to_list() == []


def test_a_tombstone_is_an_hmac_of_the_key() -> None:
    hashes = erased_hashes(SECRET, pl.Series("user_key", [17, None, -1]))
    expected = [
        hmac.new(SECRET, b"erased:%d" % key, hashlib.sha256).hexdigest() for key in (17, -1)
    ]
    assert hashes.to_list() == [expected[0], None, expected[1]]
    assert erased_hashes(b"another secret", pl.Series([17]))[0] != expected[0]


def test_secret_check_tells_secrets_apart() -> None:
    assert secret_check(SECRET) != secret_check(SECRET + b"!")
    assert SECRET.hex() not in secret_check(SECRET)


def test_ids_that_are_integers_stay_as_they_are() -> None:
    assert id_hash(pl.Series("event_id", [1, None, -5]), "s").to_list() == [1, None, -5]
    texts = id_hash(pl.Series("event_id", ["1", "-5", None, "007", "A-1", "9" * 20]), "s")
    assert texts.to_list()[:3] == [1, -5, None]
    assert texts.n_unique() == 6
    other = id_hash(pl.Series("event_id", ["A-1"]), "another source")
    assert texts[4] != other[0]


def test_known_hashes() -> None:
    """A new version of a library must not change what is already in lakes."""
    assert id_hash(pl.Series(["A-1"]), "s").to_list() == [840_452_474_776_012_706]
    rows = pl.DataFrame(
        {"i": [1], "f": [0.5], "t": ["x"], "d": [date(2011, 1, 1)], "at": [datetime(2011, 1, 1)]}
    )
    assert row_hash(rows, "s").to_list() == [6_749_591_134_759_117_573]


def test_equal_rows_whatever_the_types_and_the_order_of_columns() -> None:
    floats = pl.DataFrame({"a": [6.0, -0.0], "b": ["x", None]})
    integers = pl.DataFrame({"b": ["x", None], "a": [6, 0], "empty": [None, None]})
    assert row_hash(floats, "s").to_list() == row_hash(integers, "s").to_list()
    nano = pl.DataFrame({"t": [datetime(2011, 1, 1, 8)]}, schema={"t": pl.Datetime("ns")})
    micro, milli = nano.cast(pl.Datetime("us")), nano.cast(pl.Datetime("ms"))
    assert row_hash(nano, "s")[0] == row_hash(micro, "s")[0] == row_hash(milli, "s")[0]


CELL = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([2**63 - 1, -(2**63)]))
ROW = st.tuples(CELL, st.sampled_from([None, "", "a", "b", "ab"]), st.floats())


@given(st.lists(ROW, max_size=20))
def test_rows_share_a_hash_only_when_they_are_equal(rows: list[tuple[object, ...]]) -> None:
    frame = pl.DataFrame(
        rows, schema={"a": pl.Int64, "b": pl.String, "c": pl.Float64}, orient="row"
    )
    same_row = frame.select(pl.struct(pl.all()).rank("dense")).to_series()
    assert row_hash(frame, "s").n_unique() == same_row.n_unique() == frame.unique().height


def test_swapped_values_and_other_sources_differ() -> None:
    rows = pl.DataFrame({"a": ["x", "y", ""], "b": ["y", "x", None]})
    assert row_hash(rows, "s").n_unique() == 3
    assert row_hash(rows, "s")[0] != row_hash(rows, "t")[0]


def test_types_that_files_may_hold() -> None:
    rows = pl.DataFrame(
        {
            "flag": [True, False],
            "big": pl.Series([2**64 - 1, 1], dtype=pl.UInt64),
            "list": [[1], [2]],
            "struct": [{"a": 1}, {"a": 2}],
            "money": pl.Series(["1.50", "2.50"]).cast(pl.Decimal(10, 2)),
            "level": pl.Series(["a", "b"], dtype=pl.Categorical),
        }
    )
    for name in rows.columns:
        assert row_hash(rows.select(name), "s").n_unique() == 2


def test_two_ids_on_one_key_are_refused_without_naming_them() -> None:
    frame = pl.DataFrame(
        {"user_key": [1, 1, 1, 2], "user_id": ["anna", "anna", "bob", "cy"], "source": ["s"] * 4}
    )
    check_identities(frame.filter(pl.col("user_id") != "bob"))
    with pytest.raises(UserError, match="2 user ids share the key 1") as error:
        check_identities(frame)
    assert "anna" not in str(error.value)
