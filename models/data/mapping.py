"""A source's right-hand sides — a column of the file, or row-wise SQL over its columns."""

import difflib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from models.data.schema import UserError
from models.data.source import Source

FAILURES = "the expression fails on this row"
MANY_TEXTS = 8  # columns of an expression; each more doubles what there is to try
_MOST_FAILURES = 100  # rows on which an expression may fail before the slice is given up
# Nodes of a Polars expression that look beyond their own row.
_BEYOND_THE_ROW = frozenset({"Agg", "Len", "Over", "Explode", "SubPlan", "Rank", "Quantile"})

Schema = Mapping[str, pl.DataType]


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """One canonical column of one file: the expression, and the file's columns that it reads."""

    name: str
    where: str  # for messages: file, canonical column, right-hand side
    expression: pl.Expr
    dtype: pl.DataType
    roots: tuple[str, ...]
    numbers: tuple[str, ...] = ()  # roots that hold numbers as text and are read as numbers


def resolve(source: Source, schema: Schema, file: str, *, untyped: bool) -> tuple[Mapped, ...]:
    """How each mapped column of a source is read from a file with these columns.

    `untyped` (CSV, JSON lines): every column is text, and an expression gets numbers where it
    cannot do without. Raises UserError for a missing column (with the nearest one), SQL that
    does not parse or fit the types, and expressions that look beyond their own row.
    """
    return tuple(
        _resolve(name, text, schema, f"{file}: columns.{name}: {text!r}", untyped)
        for name, text in source.columns.items()
    )


def open_schema(source: Source, columns: Iterable[str]) -> Schema:
    """The columns of a file that has no header: those seen so far, and those the source reads."""
    seen = list(columns)
    for text in source.columns.values():
        if text not in seen:
            try:
                seen += pl.sql_expr(text).meta.root_names()
            except pl.exceptions.PolarsError:
                continue  # `resolve` says what is wrong with it
    return dict.fromkeys(seen, pl.String())


def check_seen(mapped: Iterable[Mapped], columns: Iterable[str]) -> None:
    """Raise UserError when a mapped column was in no row of a file that has no header."""
    seen = set(columns)
    for column in mapped:
        for root in column.roots:
            if root not in seen:
                raise UserError(f"{column.where}: no column {root!r}; {nearest(root, seen)}")


def nearest(name: str, columns: Iterable[str]) -> str:
    """The existing column that looks most like a missing one, as the end of a message."""
    close = difflib.get_close_matches(name, list(columns), n=1, cutoff=0.0)
    return f"the nearest column is {close[0]!r}" if close else "it has no columns"


def evaluate(mapped: Mapped, rows: pl.DataFrame) -> tuple[pl.Series, pl.Series | None]:
    """The values of a mapped column, and why a row has none (text; null where it is well).

    Raises UserError when the expression fails on more than a hundred rows.
    """
    frame, reason = rows, None
    if mapped.numbers:
        cast = [pl.col(c).str.strip_chars().cast(pl.Float64, strict=False) for c in mapped.numbers]
        frame = rows.with_columns(cast)
        reason = rows.select(
            pl.coalesce(
                pl.when(pl.col(c).is_not_null() & frame[c].is_null()).then(
                    pl.lit(f"{c}: expected a number, got text")
                )
                for c in mapped.numbers
            )
        ).to_series()
    frame = frame.select(mapped.roots) if mapped.roots else frame.select(pl.first())
    value, failed = _evaluate(mapped, frame)
    if failed:
        marks = pl.Series([f"{mapped.name}: {FAILURES}"] * len(failed), dtype=pl.String)
        empty = pl.repeat(None, rows.height, dtype=pl.String, eager=True)
        failures = empty.scatter(failed, marks)
        reason = failures if reason is None else reason.zip_with(reason.is_not_null(), failures)
    return value, reason


def _evaluate(mapped: Mapped, frame: pl.DataFrame) -> tuple[pl.Series, list[int]]:
    """Values and the rows that fail: strict casts raise, so those rows are found by halving."""
    values: list[pl.Series] = []
    failed: list[int] = []
    pending = [(0, frame.height)]
    while pending:
        start, length = pending.pop()
        try:
            part = frame.slice(start, length).with_columns(mapped.expression.alias(mapped.name))
            values.append(part[mapped.name].cast(mapped.dtype))
        except pl.exceptions.PolarsError as error:
            if length > 1:
                half = length // 2
                pending += [(start + half, length - half), (start, half)]
                continue
            failed.append(start)
            if len(failed) > _MOST_FAILURES:
                raise UserError(
                    f"{mapped.where} fails on more than {_MOST_FAILURES} rows; TRY_CAST in place "
                    "of CAST gives null instead"
                ) from error
            values.append(pl.Series(mapped.name, [None], dtype=mapped.dtype))
    return pl.concat(values).rename(mapped.name), failed


def _resolve(name: str, text: str, schema: Schema, where: str, untyped: bool) -> Mapped:
    if text in schema:
        column = pl.col(text)
        return Mapped(name=name, where=where, expression=column, dtype=schema[text], roots=(text,))
    try:
        expression = pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"{where} is neither a column nor SQL ({line}); {nearest(text, schema)}"
        ) from error
    roots = tuple(dict.fromkeys(expression.meta.root_names()))
    for root in roots:
        if root not in schema:
            raise UserError(f"{where}: no column {root!r}; {nearest(root, schema)}")
    if _beyond_the_row(json.loads(expression.meta.serialize(format="json"))):
        raise UserError(f"{where} looks at more than its own row")
    types = {root: schema[root] for root in roots}
    numbers = _numbers(expression, types, where) if untyped else ()
    types |= dict.fromkeys(numbers, pl.Float64())
    dtype = _type(expression, types)
    if isinstance(dtype, str):
        raise UserError(f"{where}: {dtype}")
    if not _same_row_by_row(expression, types):
        raise UserError(f"{where} looks at more than its own row")
    return Mapped(
        name=name, where=where, expression=expression, dtype=dtype, roots=roots, numbers=numbers
    )


def _type(expression: pl.Expr, types: Schema) -> pl.DataType | str:
    """The type of the expression over columns of these types, or why it has none.

    Found on a row of nulls: an empty frame would let `CASE … THEN text * text` pass.
    """
    row = pl.DataFrame({name: [None] for name in types} or {"": [None]}, schema_overrides=types)
    try:
        return row.with_columns(expression.alias(" ")).schema[" "]
    except pl.exceptions.PolarsError as error:
        return str(error).splitlines()[0]


def _numbers(expression: pl.Expr, types: Schema, where: str) -> tuple[str, ...]:
    """The fewest text columns that must be read as numbers for the expression to make sense.

    `a + b` makes sense both ways (a sum, or texts joined), so it is refused.
    """
    texts = [name for name, dtype in types.items() if dtype == pl.String]
    # of many columns none, one or all: the others are too many to try
    sizes = range(len(texts) + 1) if len(texts) <= MANY_TEXTS else (0, 1, len(texts))
    choices = itertools.chain.from_iterable(itertools.combinations(texts, n) for n in sizes)
    fitting: list[tuple[str, ...]] = []
    for choice in choices:
        if any(chosen and set(chosen) <= set(choice) for chosen in fitting):
            continue
        if not isinstance(_type(expression, {**types, **dict.fromkeys(choice, pl.Float64())}), str):
            fitting.append(choice)
    if fitting and not fitting[0] and any(len(choice) > 1 for choice in fitting):
        raise UserError(
            f"{where} makes sense for texts and for numbers; say TRY_CAST({texts[0]} AS DOUBLE) "
            f"or TRY_CAST({texts[0]} AS VARCHAR)"
        )
    return fitting[0] if fitting else ()


def beyond_the_row(expression: pl.Expr, types: Schema) -> bool:
    """Whether an expression over columns of these types looks at more than its own row."""
    tree = json.loads(expression.meta.serialize(format="json"))
    return _beyond_the_row(tree) or not _same_row_by_row(expression, types)


def _beyond_the_row(node: Any) -> bool:
    """Whether an expression's tree has a node such as an aggregate or a window."""
    if isinstance(node, str):
        return node in _BEYOND_THE_ROW
    if isinstance(node, list):
        return any(_beyond_the_row(part) for part in node)
    if isinstance(node, dict):
        return any(
            key in _BEYOND_THE_ROW or (key not in ("Literal", "Column") and _beyond_the_row(part))
            for key, part in node.items()
        )
    return False


def _same_row_by_row(expression: pl.Expr, types: Schema) -> bool:
    """Whether three rows together give what they give one by one: no shift, rank or quantile."""
    probe = pl.DataFrame({name: _probe(dtype) for name, dtype in types.items()} or {" ": [0, 0, 0]})
    try:
        together = probe.with_columns(expression.alias("  "))
        alone = [probe[i : i + 1].with_columns(expression.alias("  ")) for i in range(3)]
    except pl.exceptions.PolarsError:
        return True  # the made-up values do not fit, as under a strict cast
    return together.equals(pl.concat(alone))


def _probe(dtype: pl.DataType) -> pl.Series:
    if dtype == pl.String:
        return pl.Series(["1", "2", "C4"])
    if dtype.is_numeric() or dtype.is_temporal() or dtype == pl.Boolean:
        return pl.Series([1, 0, 4]).cast(dtype, strict=False)
    return pl.Series([None] * 3, dtype=dtype)
