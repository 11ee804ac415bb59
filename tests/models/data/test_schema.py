import polars as pl
import pytest

from models.data.schema import (
    EDGES,
    EVENTS,
    IDENTITIES,
    LABELS,
    PARTITIONS,
    Table,
    empty,
    protected_table,
    users_table,
)

TABLES = (EVENTS, EDGES, LABELS, IDENTITIES, users_table(("income",), ("city",)))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_keys_and_order_are_columns_and_partitions_are_there(table: Table) -> None:
    frame = empty(table)
    assert frame.is_empty()
    assert {*table.key, *table.sort, *PARTITIONS} <= set(frame.columns)


def test_declared_columns_become_numbers_and_texts() -> None:
    schema = empty(users_table(("income",), ("city",))).schema
    assert (schema["income"], schema["city"]) == (pl.Float64, pl.String)
    assert empty(protected_table(("age_band",))).schema["age_band"] == pl.String
