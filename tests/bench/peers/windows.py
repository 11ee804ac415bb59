"""What every peer of the snapshot is asked to make, beside what identifies a row.

For each user with an event before an as-of time: counts, sums and maxima over six windows, the
share at night and the distinct categories over the long ones, counts and sums by event type, time
since the first and the last event, the median amount, and whom the user dealt with in 30 days.
"""

from datetime import datetime
from pathlib import Path

from tests.bench import raw

SHORT_S = {"1h": 3600, "1d": 86_400, "7d": 604_800}
LONG_D = {"30d": 30, "90d": 90, "365d": 365}
TYPES = raw.TYPES
AS_OFS = tuple(datetime(2024 + month // 12, month % 12 + 1, 1) for month in range(1, 13))
CHECKED = ("n_1d", "sum_7d", "n_30d", "sum_90d", "categories_365d", "n_buy_90d", "n_lifetime")


def events_of(source: Path) -> Path:
    """The folder of bucketed events under what an ingest wrote."""
    return source / "lake" / "events"
