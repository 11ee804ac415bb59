"""A snapshot's rows as the batches of a training."""

from collections.abc import Callable, Iterable, Iterator

import polars as pl

from models.data.batch import Batch, Tokenizer, make_batch
from models.data.tasks import Role
from models.nets.text import load_tokenizer
from ray_jobs.config import Config
from ray_jobs.snapshot import Snapshot

Frames = Callable[[Role, int], Iterable[pl.DataFrame]]  # a role's rows, so many at a time
SELECT_ROWS = 256
SHUFFLED_ROWS = 4096  # shuffled together; a multiple of any sensible batch


class Loader:
    """What one rank trains on: `frames` gives its rows of a role, in the same order every time.

    `progress` is told the step and the steps of the whole run, before each step.
    """

    def __init__(
        self,
        config: Config,
        snapshot: Snapshot,
        frames: Frames,
        ranks: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self.config, self.snapshot, self.frames, self.progress = config, snapshot, frames, progress
        self.tokenizer: Tokenizer = load_tokenizer(config.network.text.encoder)
        self.steps = -(-(snapshot.rows["fit"] // ranks) // config.train.loop.batch_rows)
        self._select: list[Batch] = []

    def fit(self, epoch: int) -> Iterator[Batch]:
        """Batches of the fit role, users in another order every epoch.

        A user's rows stay together: the same texts stand in several of them, and a batch encodes
        each text once.
        """
        total = self.steps * self.config.train.loop.epochs
        size, step = self.config.train.loop.batch_rows, epoch * self.steps
        order = pl.col("user_key").hash(self.config.seed + epoch)
        for rows in self.frames("fit", SHUFFLED_ROWS):
            frame = rows.sort(order, maintain_order=True)
            for start in range(0, frame.height, size):
                self.progress(step, total)
                step += 1
                yield self._batch(frame.slice(start, size))

    def select(self, epoch: int) -> list[Batch]:
        """Batches of the select role, the same at every epoch."""
        if not self._select:
            self._select = [self._batch(rows) for rows in self.frames("select", SELECT_ROWS)]
        return self._select

    def _batch(self, frame: pl.DataFrame) -> Batch:
        return make_batch(
            self.snapshot.features(frame),
            self.snapshot.stats,
            self.tokenizer,
            self.config.features.max_tokens,
            [f"y_{name}" for name in self.config.tasks],
        )
