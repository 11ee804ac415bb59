"""The `runs` table: what every job read, left behind and counted. Part of `Lake`."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import polars as pl
import pyarrow as pa

from models.data.schema import TIMESTAMP, Table, UserError

RUNS = Table(
    name="runs",
    schema=pa.schema(
        [
            ("run_id", pa.string()),
            ("verb", pa.string()),
            ("started_at", TIMESTAMP),
            ("finished_at", TIMESTAMP),
            ("config", pa.string()),  # JSON
            ("table_versions", pa.string()),  # JSON: what the run read, or left behind
            ("counts", pa.string()),  # JSON: its account
            ("model_sha256", pa.string()),
        ]
    ),
    key=("verb", "run_id"),
    sort=("finished_at",),
    required=(),
)
STATE = ("ingest", "erase")  # the verbs whose newest run says what the other jobs read


class _Tables(Protocol):
    """What the accounts need of a lake."""

    @property
    def root(self) -> str: ...

    def exists(self, table: str) -> bool: ...

    def read(self, table: str) -> pl.DataFrame: ...

    def versions(self) -> dict[str, int]: ...

    def append_rows(self, table: Table, frame: pl.DataFrame, *, app: str) -> int: ...


class Accounts:
    """A lake's account of the jobs that ran."""

    def record_run(
        self: _Tables,
        verb: str,
        run_id: str,
        config: Mapping[str, Any],
        counts: Mapping[str, Any],
        model_sha256: str | None = None,
        *,
        started_at: datetime | None = None,
        versions: Mapping[str, int] | None = None,
    ) -> None:
        """Enter a finished run, once; `versions` (default: the newest) are its tables'."""
        now = datetime.now(UTC)
        row = {
            "run_id": run_id,
            "verb": verb,
            "started_at": started_at or now,
            "finished_at": now,
            "config": json.dumps(config, sort_keys=True),
            "table_versions": json.dumps(versions or self.versions(), sort_keys=True),
            "counts": json.dumps(counts, sort_keys=True),
            "model_sha256": model_sha256,
        }
        frame = pl.DataFrame([row], schema=pl.Schema(RUNS.schema))
        self.append_rows(RUNS, frame, app=f"runs/{verb}/{run_id}")

    def run(self: _Tables, verb: str, run_id: str) -> dict[str, Any] | None:
        """The account of a finished run; None when there is no such run."""
        for row in _runs(self, [verb]):
            if row["run_id"] == run_id:
                counts: dict[str, Any] = row["counts"]
                return counts
        return None

    def latest_run(self: _Tables, verb: str) -> dict[str, Any] | None:
        """The newest row of `runs` of a verb, JSON parsed; None when there is none."""
        rows = _runs(self, [verb])
        return rows[-1] if rows else None

    def state(self: _Tables) -> dict[str, Any] | None:
        """The newest row that says what the lake holds, and so what the other jobs read: an
        ingest's, or an erasure's since. None when there was no ingest."""
        rows = _runs(self, STATE)
        return rows[-1] if rows else None

    def ingested(self: _Tables) -> dict[str, Any]:
        """The same. Raises UserError when there was no ingest."""
        rows = _runs(self, STATE)
        if not rows:
            raise UserError(f"nothing in lake {self.root} yet: run `raycredit ingest` first")
        return rows[-1]


def _runs(lake: _Tables, verbs: Sequence[str]) -> list[dict[str, Any]]:
    if not lake.exists(RUNS.name):
        return []
    rows = lake.read(RUNS.name).filter(pl.col("verb").is_in(verbs)).sort("finished_at", "run_id")
    parsed = ("config", "table_versions", "counts")
    return [{**r, **{k: json.loads(r[k]) for k in parsed}} for r in rows.to_dicts()]
