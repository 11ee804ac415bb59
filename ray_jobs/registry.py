"""The `models` table: which artifact is a candidate, which one is the champion, who approved it.

Every change of status is a row; nothing is overwritten. The champion is the latest row that says
so, and what backfill and serving resolve.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from models.data.schema import TIMESTAMP, Table, UserError
from models.scoring import artifact
from ray_jobs.lake import Lake

Status = Literal["candidate", "champion"]

MODELS = Table(
    name="models",
    schema=pa.schema(
        [
            ("sha256", pa.string()),
            ("path", pa.string()),
            ("status", pa.string()),
            ("at", TIMESTAMP),
            ("approver", pa.string()),
            ("versions", pa.string()),  # of the lake's tables it was trained on, JSON
            ("details", pa.string()),  # metrics and history, JSON
        ]
    ),
    key=("sha256", "status", "at"),
    sort=("at",),
    required=(),
)


@dataclass(frozen=True)
class Model:
    """A registered model."""

    sha256: str
    path: str
    versions: dict[str, int]
    details: dict[str, Any]


def register(lake: Lake, path: Path, versions: dict[str, int], details: dict[str, Any]) -> None:
    """Enter an artifact as a candidate."""
    _append(
        lake,
        Model(artifact.sha256(path), str(path.resolve()), versions, details),
        "candidate",
        None,
    )


def promote(lake: Lake, sha256: str, approver: str) -> Model:
    """Make a registered model the champion. Raises UserError when it is unknown or damaged."""
    model = find(lake, sha256)
    artifact.verify(Path(model.path))
    _append(lake, model, "champion", approver)
    return model


def find(lake: Lake, sha256: str) -> Model:
    """A registered model by its hash, or the first digits of it. Raises UserError."""
    rows = lake.read("models").filter(pl.col("sha256").str.starts_with(sha256)).sort("at")
    if rows["sha256"].n_unique() != 1:
        found = "none" if rows.is_empty() else "several"
        raise UserError(f"models: {found} with a SHA-256 that starts with {sha256!r}")
    return _model(rows.row(-1, named=True))


def latest(lake: Lake) -> Model:
    """The candidate registered last. Raises UserError when there is none."""
    return _last(lake, "candidate", "train")


def champion(lake: Lake) -> Model:
    """The champion. Raises UserError when none has been approved."""
    return _last(lake, "champion", "promote")


def _last(lake: Lake, status: Status, verb: str) -> Model:
    there = "models" in lake.versions()
    rows = lake.read("models", where={"status": status}) if there else None
    if rows is None or rows.is_empty():
        raise UserError(f"models: there is no {status} yet: run `raycredit {verb}` first")
    return _model(rows.sort("at").row(-1, named=True))


def _model(row: dict[str, Any]) -> Model:
    return Model(
        row["sha256"], row["path"], json.loads(row["versions"]), json.loads(row["details"])
    )


def _append(lake: Lake, model: Model, status: Status, approver: str | None) -> None:
    now = datetime.now(UTC)
    row = {
        "sha256": model.sha256,
        "path": model.path,
        "status": status,
        "at": now,
        "approver": approver,
        "versions": json.dumps(model.versions, sort_keys=True),
        "details": json.dumps(model.details),
    }
    frame = pl.from_arrow(pa.Table.from_pylist([row], schema=MODELS.schema))
    assert isinstance(frame, pl.DataFrame)
    lake.append_rows(MODELS, frame, app=f"models/{status}/{model.sha256}/{now.isoformat()}")
