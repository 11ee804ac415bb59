"""Every row is accounted for."""

import io

import pytest
from rich.console import Console

from ray_jobs.account import Account, Count, from_stored, to_stored

LINES = Count(rows_in=9, accepted=5, rejected=3, duplicates=1, reasons={"no user id": 3})
ACCOUNT = Account(
    {
        ("lines", "2011-01"): LINES,
        ("lines", "2011-02"): Count(rows_in=1, accepted=1, unchanged=True),
        ("crm", "all"): Count(rows_in=2, accepted=2, unchanged=True),
    }
)


def test_an_account_that_does_not_balance_cannot_be_made() -> None:
    with pytest.raises(AssertionError, match="3 rows in, 2 accounted for"):
        Count(rows_in=3, accepted=2)
    with pytest.raises(AssertionError, match="has a reason"):
        Count(rows_in=1, rejected=1)


def test_sums() -> None:
    assert ACCOUNT.to_json() == {"rows_in": 12, "accepted": 8, "rejected": 3, "duplicates": 1}
    assert list(ACCOUNT.by_source()) == ["crm", "lines"]
    assert ACCOUNT.by_source()["lines"].rows_in == 10
    assert not ACCOUNT.unchanged
    assert Account({}).to_json()["rows_in"] == 0


def test_what_a_run_keeps_comes_back_as_unchanged() -> None:
    contents = {part: f"hash of {part}" for part in ACCOUNT.parts}
    stored = from_stored(to_stored(ACCOUNT, contents))
    assert {part: content for part, (content, _) in stored.items()} == contents
    count = stored["lines", "2011-01"][1]
    assert count.unchanged and count.to_json() == LINES.to_json()
    assert count.reasons == LINES.reasons


def test_the_table_names_sources_counts_and_reasons() -> None:
    console = Console(width=120, file=io.StringIO())
    console.print(ACCOUNT.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    assert "no user id (3)" in text
    assert "crm (unchanged)" in text and "lines (unchanged)" not in text
