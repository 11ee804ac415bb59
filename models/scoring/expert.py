"""Experts beside the network of a stack: what they can do, and which there are."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.data.features import Features
from models.data.schema import UserError
from models.data.tasks import Task
from models.scoring.config import ExpertName, Resampling
from models.scoring.parts import Part
from models.scoring.terms import TermExpert, fit_term_expert
from models.scoring.trees import TreeExpert, fit_tree_expert

NAMES: tuple[ExpertName, ...] = get_args(ExpertName)


class Expert(Protocol):
    """Raw values of tasks from rows of features: the same bits for a row alone and in company."""

    @property
    def tasks(self) -> Collection[str]:
        """Those that it has anything to say of."""

    def read(self, frame: pl.DataFrame) -> Any:
        """What it sees of a frame's rows."""

    def raw(self, task: str, rows: Any) -> NDArray[np.float64]:
        """(N,) logits, or expected amounts."""

    def without(self, rows: Any, parts: Sequence[Part]) -> Any:
        """The rows, then all of them again for each part, with that part as if not known."""

    def write(self, folder: Path, tasks: Sequence[str]) -> None:
        """As files in a folder."""


Experts = Mapping[ExpertName, Expert]
Seen = Mapping[ExpertName, Any]  # what each expert has read of some rows
LOADERS: dict[ExpertName, Callable[[Path, Mapping[str, Task]], Expert]] = {
    "lightgbm": TreeExpert.load,
    "tfidf": TermExpert.load,
}


def fit_experts(
    names: Sequence[ExpertName],
    fit: Features,
    select: Features,
    tasks: Mapping[str, Task],
    seed: int,
    resampling: Resampling = "none",
) -> Experts:
    """The named experts, of the fit role's rows and judged on the select role's."""
    experts: dict[ExpertName, Expert] = {}
    if "lightgbm" in names:
        experts["lightgbm"] = fit_tree_expert(fit, select, tasks, seed, resampling)
    if "tfidf" in names:
        try:
            experts["tfidf"] = fit_term_expert(fit.frame, select.frame, tasks)
        except UserError as error:
            raise UserError(f"stack.experts: tfidf: {error}") from error
    return experts


def write_experts(experts: Experts, folder: Path, tasks: Sequence[str]) -> None:
    """Each in a folder of its name."""
    for name, expert in experts.items():
        (folder / name).mkdir(parents=True)
        expert.write(folder / name, tasks)


def load_experts(folder: Path, tasks: Mapping[str, Task]) -> Experts:
    """What `write_experts` wrote. Raises UserError for other files."""
    experts = {}
    for name in NAMES:
        if not (folder / name).is_dir():
            continue
        try:
            experts[name] = LOADERS[name](folder / name, tasks)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / name}: {str(error).splitlines()[0]}") from error
    return experts
