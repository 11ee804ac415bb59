"""What jobs read of the lake."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from models.data.clean import conform
from models.data.rows import label_columns, number
from models.data.schema import LABELS, empty
from models.data.tasks import Task
from ray_jobs.lake import Lake
from ray_jobs.tables import Tables

AS_OF, MATURED = datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 4, 1, tzinfo=UTC)
PARTS = [("bank", "2024-03"), ("bank", "2024-04"), ("shop", "2024-03")]


def lake_of(folder: Path, days: tuple[int, ...]) -> Tables:
    """A lake in which each part knows another value of one label, since that day of April."""
    lake = Lake(str(folder))
    known = zip(PARTS, days, strict=True)
    for value, ((source, period), day) in enumerate(known):
        row = {"user_key": [7], "task": ["default"], "as_of": [AS_OF], "value": [float(value)]}
        matured = pl.lit(MATURED.replace(day=day)).alias("matured_at")
        where = {"source": source, "period": period}
        label = conform(pl.DataFrame(row).with_columns(matured), LABELS)
        file = lake.write_part(LABELS, label, {**where, "bucket": 1})
        lake.replace(LABELS, app=f"{source}/{period}", files=[file], where=where)
    return Tables(lake, lake.versions(), range(1, 2))


@pytest.mark.parametrize(("days", "value"), [((3, 1, 2), 1.0), ((2, 2, 1), 2.0), ((1, 1, 1), 0.0)])
def test_a_label_of_two_periods_or_sources_is_the_one_known_first(
    tmp_path: Path, days: tuple[int, ...], value: float
) -> None:
    labels = lake_of(tmp_path / "lake", days).labels(1)
    assert labels is not None
    rows = number(labels.select("user_key", "as_of"))
    found = label_columns(rows, empty(LABELS), labels, {"default": Task(kind="amount")})
    assert found["y_default"].to_list() == [value]


def test_a_lake_without_labels(tmp_path: Path) -> None:
    assert Tables(Lake(str(tmp_path / "lake")), {}, range(1, 2)).labels(1) is None
