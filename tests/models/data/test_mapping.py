"""Right-hand sides of a source: columns and row-wise SQL, never an aggregate."""

from datetime import datetime

import polars as pl
import pytest

from models.data.mapping import Mapped, check_seen, evaluate, open_schema, resolve
from models.data.schema import UserError
from models.data.source import Source

TYPED = dict(
    pl.DataFrame(
        {"x": [1.0], "y": [1.0], "s": ["a"], "Review Text": ["a"], "t": [datetime(2011, 1, 1)]}
    ).schema
)
TEXT: dict[str, pl.DataType] = dict.fromkeys(TYPED, pl.String())


def mapped(expression: str, *, untyped: bool = False) -> Mapped:
    source = Source(table="users", path="f", columns={"user_id": expression}, immutable=True)
    return resolve(source, TEXT if untyped else TYPED, "f.csv", untyped=untyped)[0]


def values(expression: str, rows: pl.DataFrame, *, untyped: bool = False) -> list[object]:
    return evaluate(mapped(expression, untyped=untyped), rows)[0].to_list()


@pytest.mark.parametrize(
    "expression",
    [
        "SUM(x)",
        "SUM(x) + y",
        "COUNT(*)",
        "MAX(x) - x",
        "x > AVG(x)",
        "CASE WHEN SUM(x) > 1e9 THEN 'a' ELSE 'b' END",
        "ROW_NUMBER() OVER (ORDER BY x)",
        "SUM(x) OVER (PARTITION BY s)",
        "LAG(x, 1) OVER (ORDER BY x)",
        "RANK() OVER (ORDER BY x)",
        "QUANTILE_CONT(x, 0.5)",
        "FIRST(x)",
        "ARRAY_AGG(x)",
        "UNNEST(s)",
    ],
)
def test_expressions_that_look_beyond_their_row_are_refused(expression: str) -> None:
    for untyped in (False, True):
        with pytest.raises(UserError, match="looks at more than its own row"):
            mapped(expression, untyped=untyped)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("x", [2.0, 3.0]),
        ("x * y", [10.0, 21.0]),
        ("Review Text", ["r", None]),
        ("'buy'", ["buy", "buy"]),
        ("CASE WHEN s LIKE 'C%' THEN 'cancel' ELSE 'buy' END", ["cancel", "buy"]),
        ('COALESCE("Review Text", s)', ["r", "d"]),
        ("s = 'Agg'", [False, False]),
        ("TRY_CAST(s AS DOUBLE)", [None, None]),
    ],
)
def test_row_wise_expressions(expression: str, expected: list[object]) -> None:
    rows = pl.DataFrame(
        {"x": [2.0, 3.0], "y": [5.0, 7.0], "s": ["Cd", "d"], "Review Text": ["r", None]}
    )
    assert values(expression, rows) == expected
    assert values(expression, rows.clear()) == []


def test_the_nearest_column_is_named() -> None:
    with pytest.raises(UserError, match=r"f.csv: columns.user_id: 'Revew Text': .* 'Review Text'"):
        mapped("Revew Text")
    with pytest.raises(UserError, match="no column 'xx'; the nearest column is 'x'"):
        mapped("xx * y")
    with pytest.raises(UserError, match="neither a column nor SQL"):
        mapped("x *")


def test_types_that_do_not_fit_are_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"f\.csv: columns\.user_id"):
        mapped("s * x")


def test_text_files_get_numbers_only_where_they_must() -> None:
    rows = pl.DataFrame({"x": ["2", " 3"], "y": ["5", "7"], "s": ["C", "007"]})
    assert values("x * y", rows, untyped=True) == [10.0, 21.0]
    assert values("CASE WHEN s LIKE 'C%' THEN x * y ELSE 0 END", rows, untyped=True) == [10.0, 0.0]
    assert values("s", rows, untyped=True) == ["C", "007"]
    assert values("s IN ('007')", rows, untyped=True) == [False, True]
    with pytest.raises(UserError, match="TRY_CAST"):
        mapped("x + y", untyped=True)  # a sum, or texts joined?


def test_many_text_columns_are_read_as_numbers_together() -> None:
    """Else each column more would double what there is to try."""
    names = [f"c{k}" for k in range(24)]
    rows = pl.DataFrame({name: ["2"] for name in names})
    columns = {"user_id": " - ".join(names)}
    source = Source(table="users", path="f", columns=columns, immutable=True)
    (one,) = resolve(source, dict.fromkeys(names, pl.String()), "f.csv", untyped=True)
    assert evaluate(one, rows)[0].to_list() == [2.0 - 23 * 2.0]


def test_text_that_is_no_number_rejects_its_row() -> None:
    rows = pl.DataFrame({"x": ["2", "two", None], "y": ["5", "5", "5"]})
    found, reason = evaluate(mapped("x * y", untyped=True), rows)
    assert found.to_list() == [10.0, None, None]
    assert reason is not None
    assert reason.to_list() == [None, "x: expected a number, got text", None]


def test_a_strict_cast_rejects_its_rows_only() -> None:
    strict = mapped("CAST(s AS DOUBLE)")
    found, reason = evaluate(strict, pl.DataFrame({"s": ["1", "x", "3", None, "y"]}))
    assert found.to_list() == [1.0, None, 3.0, None, None]
    assert reason is not None
    assert [r is not None for r in reason] == [False, True, False, False, True]
    with pytest.raises(UserError, match="TRY_CAST"):
        evaluate(strict, pl.DataFrame({"s": ["x"] * 1_000}))


def test_columns_of_a_file_without_a_header() -> None:
    source = Source(table="users", path="f", columns={"user_id": "a || b"}, immutable=True)
    schema = open_schema(source, ["a", "Long name"])
    assert set(schema) == {"a", "Long name", "b"}
    resolved = resolve(source, schema, "f.jsonl", untyped=True)
    check_seen(resolved, ["a", "b"])
    with pytest.raises(UserError, match="no column 'b'; the nearest column is 'bb'"):
        check_seen(resolved, ["a", "bb"])
