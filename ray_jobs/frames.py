"""A snapshot's rows for a training in one process: whole, a share of the users, or by folds."""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl
import pyarrow.parquet as pq

from models.data.tasks import Role
from ray_jobs.folds import inside
from ray_jobs.snapshot import Snapshot

GRAIN = 10_000  # of a share


@dataclass(frozen=True)
class Frames:
    """The rows that a training of one rank sees, in the order of the snapshot's files.

    `share`: of the fit role's users. With `folds`, the fit role's users are in so many parts: the
    select role is the part `fold`, the fit role the others. A user's rows stay together.
    """

    snapshot: Snapshot
    select_rows: int
    seed: int
    share: float = 1.0
    folds: int | None = None
    fold: int | None = None

    def __call__(self, role: Role, rows: int) -> Iterator[pl.DataFrame]:
        """Rows of the fit or the select role, `rows` at a time."""
        left = self.select_rows if role == "select" else None
        held = pl.DataFrame()
        for part in self._parts(role, rows):
            held = pl.concat([held, part]) if held.height else part
            while held.height >= rows and left != 0:
                yield held.head(rows if left is None else min(rows, left))
                left = None if left is None else max(0, left - rows)
                held = held.slice(rows)
        if held.height and left != 0:
            yield held if left is None else held.head(left)

    def count(self) -> int:
        """The rows of the fit role."""
        return sum(part.height for part in self._parts("fit", GRAIN, ["user_key"]))

    def _parts(
        self, role: Role, rows: int, columns: list[str] | None = None
    ) -> Iterator[pl.DataFrame]:
        files = self.snapshot.files("fit" if self.folds else role)
        keep = self._keep(role)
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(rows, columns=columns):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                yield frame.filter(keep)

    def _keep(self, role: Role) -> pl.Expr:
        keep = pl.lit(True)
        if role == "fit" or self.folds:
            keep &= pl.col("user_key").hash(self.seed) % GRAIN < round(self.share * GRAIN)
        if self.folds:
            assert self.fold is not None
            own = inside(self.fold, self.folds, self.seed)
            keep &= own if role == "select" else ~own
        return keep
