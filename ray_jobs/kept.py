"""The columns that a training's network sees, chosen before it starts: `network.tabular.keep`."""

from models.data.schema import UserError
from models.scoring.selection import most_important
from ray_jobs.config import Config
from ray_jobs.frames import Frames
from ray_jobs.snapshot import Snapshot

ROWS = 20_000  # of the fit role, that the trees are fitted on


def with_kept(config: Config, frames: Frames) -> Snapshot:
    """The snapshot of the frames, its stats with the columns that the network is to see.

    They are chosen by the first `ROWS` rows of the fit role: users lie in order of a keyed hash,
    so these are a random sample of them. The same snapshot and seed choose the same columns.
    """
    snapshot, keep = frames.snapshot, config.network.tabular.keep
    if keep is None or keep >= len(snapshot.tabular):
        return snapshot
    rows = next(frames("fit", ROWS), None)
    if rows is None:
        raise UserError("network.tabular.keep: no row in the fit role to choose by")
    kept = most_important(snapshot.features(rows), config.tasks, keep, config.seed)
    stats = snapshot.stats.model_copy(update={"kept": kept})
    return snapshot.model_copy(update={"stats": stats})
