"""The `tombstones` table: who was erased, told by a hash that only the lake's secret can make."""

import polars as pl
import pyarrow as pa

from models.data.schema import TIMESTAMP, Table, UserError
from ray_jobs.lake import Lake

TOMBSTONES = Table(
    name="tombstones",
    schema=pa.schema(
        [
            ("user_hash", pa.string()),  # models.data.keys.erased_hashes
            ("erased_at", TIMESTAMP),
            ("rows", pa.string()),  # JSON: rows removed by table
        ]
    ),
    key=("user_hash",),
    sort=("erased_at", "user_hash"),
    required=(),
)


def erased(lake: Lake) -> frozenset[str]:
    """The hashes of the users who were erased from this lake."""
    if not lake.exists(TOMBSTONES.name):
        return frozenset()
    hashes = lake.read(TOMBSTONES.name, columns=["user_hash"])
    return frozenset(hashes["user_hash"].to_list())


def check_same(lake: Lake, before: frozenset[str], then: str, when: str = "meanwhile") -> None:
    """Raises UserError where users were erased since `before` was read; what to do `then`."""
    if erased(lake) != before:
        raise UserError(f"users were erased {when}: {then}")


def bury(lake: Lake, frame: pl.DataFrame, app: str) -> None:
    """Enter tombstones, once for an application."""
    lake.append_rows(TOMBSTONES, frame.select(TOMBSTONES.schema.names), app=app)
