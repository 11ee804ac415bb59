"""What a training is judged by beside its loss, caught as the select role's batches pass."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.nets.network import Network, Outputs
from models.nets.ranks import of_all_ranks
from models.nets.text import load_tokenizer
from models.scoring.calibrate import fit_platt
from models.scoring.metrics import measure
from models.scoring.predict import Predictor
from ray_jobs.config import Config
from ray_jobs.snapshot import Snapshot

Floats = NDArray[np.float64]
Figures = Callable[[Floats, Floats], dict[str, float]]  # of outcomes, NaN: unknown, and logits
FEWEST = 20  # users of a group with a good outcome, for its share to count
TIMED_ROWS, TIMES = 64, 3


class Observer:
    """The figures of one binary task over what `network` answers in evaluation mode."""

    def __init__(self, network: Network, task: str, figures: Figures) -> None:
        self.task, self._figures = task, figures
        self.column = list(network.heads.tasks).index(task)
        self._pairs: list[Tensor] = []
        network.register_forward_hook(self._see)

    def _see(self, network: Network, inputs: tuple[Any, ...], outputs: Outputs) -> None:
        if not network.training:
            labels_B = inputs[0].labels_BK[:, self.column]
            self._pairs.append(torch.stack([labels_B, outputs.tasks[self.task]]).detach().cpu())

    def figures(self) -> dict[str, float]:
        """The figures of the rows since the last call, over all ranks."""
        own = torch.cat(self._pairs, 1)
        self._pairs.clear()
        label, logit = torch.cat(of_all_ranks(own), 1).double()
        return self._figures(label.numpy(), logit.numpy())


def quality(y: Floats, logit: Floats) -> dict[str, float]:
    """`log_loss`, after Platt scaling, and `auc` of the known outcomes; none where these are all
    the same.

    A model is calibrated before it is used, so what calibration puts right is not held against a
    loss that weighs classes. Two numbers fitted to the rows that they are judged by flatter little.
    """
    known = np.isfinite(y)
    y, logit = y[known], logit[known]
    if len(np.unique(y)) < 2:
        return {}
    p = fit_platt(logit, y).apply(logit)
    return {"log_loss": float(measure("log_loss", y, p)), "auc": float(measure("auc", y, logit))}


def fairness_gap(groups: Mapping[str, NDArray[np.object_]], y: Floats, logit: Floats) -> float:
    """Equal opportunity (Hardt et al. 2016): of users with a good outcome, the share with a PD in
    the better half. The largest difference between two groups of an attribute.

    `groups`: attribute → the group of each row, None where unknown.
    """
    good = y == 0
    better = logit <= np.median(logit)
    gaps = [0.0]
    for group in groups.values():
        sizes = {g: good & (group == g) for g in set(group.tolist()) if g is not None}
        shares = [float(better[rows].mean()) for rows in sizes.values() if rows.sum() >= FEWEST]
        gaps.append(max(shares, default=0.0) - min(shares, default=0.0))
    return max(gaps)


def groups_of(keys: pl.Series, protected: pl.DataFrame) -> dict[str, NDArray[np.object_]]:
    """The protected attributes of some users, in their order."""
    rows = keys.to_frame("user_key").join(
        protected, on="user_key", how="left", maintain_order="left"
    )
    return {name: rows[name].to_numpy() for name in rows.columns if name != "user_key"}


def cost(network: Network, config: Config, snapshot: Snapshot) -> float:
    """Milliseconds to score a user in fp32, from feature rows on, each text encoded anew."""
    rows = snapshot.read("select")
    rows = replace(rows, frame=rows.frame.head(TIMED_ROWS))
    tokenizer = load_tokenizer(config.network.text.encoder)
    seconds = []
    for _ in range(TIMES):
        predictor = Predictor(network, snapshot.stats, tokenizer, config.features.max_tokens)
        start = time.perf_counter()
        predictor.raw(rows)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds) / rows.frame.height
