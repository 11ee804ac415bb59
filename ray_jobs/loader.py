"""A snapshot's rows as the batches of a training."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import polars as pl

from models.data.batch import Batch, Tokenizer, make_batch
from models.data.resample import ResampleConfig, resampled, resampled_counts
from models.data.tasks import Role
from models.nets.text import load_tokenizer
from ray_jobs.config import Config
from ray_jobs.snapshot import Snapshot

Rows = Callable[[Role, int], Iterable[pl.DataFrame]]  # a role's rows, so many at a time
SELECT_ROWS = 256
SHUFFLED_ROWS = 4096  # shuffled together, about: so many whole batches


@dataclass(frozen=True)
class _Begun:
    """An epoch's batches from `start` on, of which the first is in the making."""

    epoch: int
    start: int
    batches: Iterator[Batch]
    first: "Future[Batch | None]"


class Loader:
    """What one rank trains on: `frames` gives its rows of a role, in the same order every time.

    Nothing is waited for that could be made before: the next batch while one is trained on, the
    select role's during the first epoch, an epoch's first ones at the end of that before it.
    """

    def __init__(self, config: Config, snapshot: Snapshot, frames: Rows, ranks: int) -> None:
        self.config, self.snapshot, self.frames = config, snapshot, frames
        self.tokenizer: Tokenizer = load_tokenizer(config.network.text.encoder)
        rows = fit_rows(snapshot, config.train.resample)
        self._growth = rows / max(1, snapshot.rows["fit"])  # of the rows by resampling
        self.steps = -(-(rows // ranks) // config.train.loop.batch_rows)
        self._threads = ThreadPoolExecutor(2, "batches")  # one makes fit's, one select's
        self._next: _Begun | None = None
        self._select: Future[list[Batch]] | None = None

    def fit(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of the fit role from number `start` on, users in another order every epoch.

        A user's rows stay together: the same texts stand in several of them, and a batch encodes
        each text once.
        """
        begun = self._next
        if begun is None or (begun.epoch, begun.start) != (epoch, start):
            begun = self._begin(epoch, start)
        self._next, coming = None, begun.first
        self._held_out()
        while (batch := coming.result()) is not None:
            coming = self._threads.submit(next, begun.batches, None)
            yield batch
        if epoch + 1 < self.config.train.loop.epochs:
            self._next = self._begin(epoch + 1, 0)

    def select(self, epoch: int) -> list[Batch]:
        """Batches of the select role, the same at every epoch."""
        return self._held_out().result()

    def _begin(self, epoch: int, start: int) -> _Begun:
        batches = (self._batch(frame) for frame in self._parts(epoch, start))
        return _Begun(epoch, start, batches, self._threads.submit(next, batches, None))

    def _held_out(self) -> "Future[list[Batch]]":
        if self._select is None:
            frames = self.frames("select", SELECT_ROWS)
            self._select = self._threads.submit(lambda: [self._batch(rows) for rows in frames])
        return self._select

    def _parts(self, epoch: int, start: int) -> Iterator[pl.DataFrame]:
        size = self.config.train.loop.batch_rows
        order = pl.col("user_key").hash(self.config.seed + epoch)
        for frame in self.frames("fit", size * max(1, SHUFFLED_ROWS // size)):
            rows = self._resampled(frame, epoch)
            parts = -(-rows.height // size)
            if start < parts:
                shuffled = rows.sort(order, maintain_order=True)
                yield from shuffled.slice(start * size).iter_slices(size)
            start = max(0, start - parts)

    def _resampled(self, rows: pl.DataFrame, epoch: int) -> pl.DataFrame:
        """As configured; another draw every epoch. Copies of a row come in one batch.

        How many rows there are must not hang on their labels: a rank that had a batch less than
        the others would leave them waiting for its gradients.
        """
        resample = self.config.train.resample
        if resample is None:
            return rows
        labels = rows[f"y_{resample.task}"].cast(pl.Float64).to_numpy()
        count = round(rows.height * self._growth)
        return rows[resampled(labels, resample, self.config.seed + epoch, count)]

    def _batch(self, frame: pl.DataFrame) -> Batch:
        return make_batch(
            self.snapshot.features(frame),
            self.snapshot.stats,
            self.tokenizer,
            self.config.features.max_tokens,
            [f"y_{name}" for name in self.config.tasks],
        )


def fit_rows(snapshot: Snapshot, resample: ResampleConfig | None) -> int:
    """About how many rows an epoch has over all ranks."""
    if resample is None:
        return snapshot.rows["fit"]
    y = pl.col(f"y_{resample.task}")
    labels = pl.scan_parquet(snapshot.files("fit")).select(
        rows=pl.len(), known=y.count(), positive=y.sum()
    )
    rows, known, positive = (int(count) for count in labels.collect().row(0))
    small, large = sorted((positive, known - positive))
    drawn = rows - known + sum(resampled_counts(small, large, resample))
    return round(snapshot.rows["fit"] * drawn / rows)  # a search may train on a share of the rows
