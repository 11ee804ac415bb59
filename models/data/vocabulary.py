"""The words of the data — event types, categories, levels, relations — fitted on the fit role."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from models.data.schema import UserError
from models.data.strict import Strict

PAD = 0
UNKNOWN = 1  # a value not seen in training; known ones follow
FIRST_LEVEL = 1  # the most frequent of a profile column; what is not known is 0


class Vocabulary(Strict):
    """What was seen before the last as-of time of the fit role, most frequent first.

    `numeric` and `categorical` are the declared profile columns, `levels` their known values.
    """

    event_types: tuple[str, ...]
    categories: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    levels: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    def type_codes(self, values: pl.Series) -> NDArray[np.int64]:
        """Codes ≥ 2 of known event types, `UNKNOWN` of the rest."""
        return _codes(values, self.event_types, UNKNOWN + 1, UNKNOWN)

    def category_codes(self, values: pl.Series) -> NDArray[np.int64]:
        """Codes ≥ 2 of known categories, `UNKNOWN` of the rest, null among them."""
        return _codes(values, self.categories, UNKNOWN + 1, UNKNOWN)

    def level_codes(self, column: str, values: pl.Series) -> NDArray[np.int64]:
        """Codes ≥ 1 of the known levels of a profile column, 0 of the rest."""
        return _codes(values, self.levels.get(column, ()), FIRST_LEVEL, 0)


def _codes(values: pl.Series, known: Sequence[str], first: int, other: int) -> NDArray[np.int64]:
    if isinstance(values.dtype, pl.Categorical):
        return _codes_of_numbers(values, known, first, other)
    if not known:
        return np.full(len(values), other, dtype=np.int64)
    codes = values.replace_strict(
        list(known), list(range(first, first + len(known))), default=other, return_dtype=pl.Int64
    )
    return codes.fill_null(other).to_numpy()


def _codes_of_numbers(
    values: pl.Series, known: Sequence[str], first: int, other: int
) -> NDArray[np.int64]:
    """The same by a table over the numbers of the names, each name looked up once."""
    names = values.drop_nulls().unique()
    numbers = names.to_physical().to_numpy()
    table = np.full(int(numbers.max(initial=0)) + 1, other, dtype=np.int64)
    table[numbers] = _codes(names.cast(pl.String), known, first, other)
    codes = table[values.to_physical().fill_null(0).to_numpy()]
    return np.where(values.is_null().to_numpy(), other, codes)


def count_values(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """(value, n) of a text column; such counts of several parts add up."""
    return (
        frame.lazy()
        .filter(pl.col(column).is_not_null())
        .group_by(pl.col(column).alias("value"))
        .agg(n=pl.len().cast(pl.Int64))
        .collect()
    )


def most_frequent(counts: pl.DataFrame, limit: int) -> tuple[str, ...]:
    """The most frequent values, ties in alphabetical order, so that any order of parts agrees."""
    total = counts.group_by("value").agg(pl.col("n").sum())
    ordered = total.sort("n", "value", descending=[True, False])
    return tuple(ordered["value"].head(limit).to_list())


def check_event_types(event_types: Sequence[str]) -> None:
    """Refuse a vocabulary with no event type: there is nothing to learn from."""
    if not event_types:
        raise UserError("events: none lies before the last as-of date of the fit role")
