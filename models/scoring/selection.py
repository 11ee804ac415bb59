"""Which tabular columns the network sees, where it is to see fewer than there are."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import polars as pl

from models.data.features import Features
from models.data.schema import UserError
from models.data.tasks import Task
from models.scoring.parts import labels_of
from models.scoring.trees import fit_tree_expert

APART = 0.2  # of the users, by whose rows the trees are stopped


def most_important(
    fit: Features, tasks: Mapping[str, Task], keep: int, seed: int
) -> tuple[str, ...]:
    """The `keep` tabular columns that trees of the fit role gain most by, in the features' order.

    The trees are those of the expert lightgbm, stopped by users of the fit role set apart, so that
    no other role has a say. A column's importance is the mean over tasks of its share of what all
    splits gained. `fit` holds the labels as `y_<task>`. Raises UserError where nothing was split.
    """
    users = fit.frame["user_key"].unique().sort()
    apart = pl.col("user_key").is_in(users.sample(fraction=APART, seed=seed).implode())
    learned = replace(fit, frame=fit.frame.filter(~apart))
    judged = replace(fit, frame=fit.frame.filter(apart))
    some = {
        name: task
        for name, task in tasks.items()
        if (labels_of(learned.frame, name, task.kind) > 0).any()
    }
    expert = fit_tree_expert(learned, judged, some, seed)
    gain_F = np.zeros(len(fit.tabular))
    for trees in expert.trees.values():
        gain_F += trees.gains[: len(fit.tabular)]
    if not gain_F.any():
        raise UserError(
            f"network.tabular.keep: trees of {learned.frame.height} rows of the fit role tell no "
            "column from another; leave it out"
        )
    best = np.argsort(-gain_F, kind="stable")[:keep]
    return tuple(fit.tabular[k] for k in sorted(best))
