"""The `runs` table: what every job read, left behind and counted. Part of `Lake`."""

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import polars as pl
import pyarrow as pa

from models.data.schema import TIMESTAMP, Table, UserError
from ray_jobs.storage import short_digest

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
MEANWHILE = "another job changed the lake meanwhile; run it again"


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
        time: int = 1,
    ) -> None:
        """Enter a finished run, once each `time` that it ran to another end than before;
        `versions` (default: the newest) are its tables'."""
        now = datetime.now(UTC)
        row = _row(
            run_id=run_id,
            verb=verb,
            started_at=started_at or now,
            finished_at=now,
            config=config,
            table_versions=versions or self.versions(),
            counts=counts,
            model_sha256=model_sha256,
        )
        self.append_rows(RUNS, row, app=f"runs/{verb}/{run_id}/{time}")

    def record_state(
        self: _Tables,
        verb: str,
        config: Mapping[str, Any],
        counts: Mapping[str, Any],
        versions: Mapping[str, int],
        *,
        after: Mapping[str, Any] | None,
        started_at: datetime,
    ) -> None:
        """Enter a finished ingest or erasure as what the other jobs read from now on.

        `after` is the `state` that it began from (None: there was none). Each has one successor:
        raises UserError, and enters nothing, when another job has been entered after the same.
        """
        run_id, now = uuid.uuid4().hex[:16], datetime.now(UTC)
        place = "nothing"
        if after is not None:  # the newest, also by a clock that is behind that of the job before
            now = max(now, after["finished_at"] + timedelta(microseconds=1))
            place = short_digest([after["verb"], after["run_id"], after["finished_at"].isoformat()])
        row = _row(
            run_id=run_id,
            verb=verb,
            started_at=started_at,
            finished_at=now,
            config=config,
            table_versions=versions,
            counts=counts,
        )
        self.append_rows(RUNS, row, app=f"runs/after/{place}")
        if all(entered["run_id"] != run_id for entered in _runs(self, [verb])):
            raise UserError(MEANWHILE)

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


def _row(**values: Any) -> pl.DataFrame:
    """A row of `runs`; what is a mapping becomes JSON."""
    texts = {k: json.dumps(v, sort_keys=True) for k, v in values.items() if isinstance(v, Mapping)}
    return pl.DataFrame([values | texts], schema=pl.Schema(RUNS.schema))


def _runs(lake: _Tables, verbs: Sequence[str]) -> list[dict[str, Any]]:
    if not lake.exists(RUNS.name):
        return []
    rows = lake.read(RUNS.name).filter(pl.col("verb").is_in(verbs)).sort("finished_at", "run_id")
    parsed = ("config", "table_versions", "counts")
    return [{**r, **{k: json.loads(r[k]) for k in parsed}} for r in rows.to_dicts()]
