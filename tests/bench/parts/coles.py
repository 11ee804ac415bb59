"""LightGBM on the embeddings of pytorch-lifestream's CoLES, alone and beside our own features."""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from models.data.tasks import Role, Task
from models.scoring.parts import with_outcome
from models.scoring.trees import Columns, fit_trees
from ray_jobs.snapshot import Snapshot

FloatArray = NDArray[np.float64]
PYTHON = Path(".bench") / "lifestream" / "bin" / "python"
ROLES: tuple[Role, ...] = ("fit", "select", "test")
SEED = 1


def coles(made: Snapshot, tasks: Mapping[str, Task]) -> tuple[dict[str, FloatArray], ...]:
    """Task → (N,) probabilities or amounts of the test role: of the embeddings, and with features.

    Trees are those of the expert, fitted on the fit role and stopped on the select role.
    """
    embeddings = _embeddings(made)
    columns = Columns(made.tabular, made.categorical, made.social)
    frames = {role: made.read(role).frame for role in ROLES}
    ours = {role: columns.matrix(frame) for role, frame in frames.items()}
    both = {role: np.hstack([ours[role], embeddings[role]]) for role in ROLES}
    found: tuple[dict[str, FloatArray], ...] = ({}, {})
    for name, task in tasks.items():
        for values, x, codes in zip(found, (embeddings, both), ((), columns.codes), strict=True):
            fit, select = (
                with_outcome(x[role], frames[role], name, task.kind) for role in ("fit", "select")
            )
            raw = fit_trees(task.kind, codes, fit, select, SEED).raw(x["test"])
            values[name] = np.asarray(expit(raw) if task.kind == "binary" else raw)
    return found


def _embeddings(made: Snapshot) -> dict[Role, NDArray[np.float32]]:
    """Role → [rows, width], in the order of the snapshot, made in an environment of their own."""
    if not PYTHON.exists():
        raise SystemExit(f"coles: no {PYTHON}; `make bench-quality` installs what it needs")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(PYTHON), "-m", "tests.bench.peers.coles_lifestream", made.folder, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"coles failed:\n{done.stderr[-3000:]}")
        return {role: np.load(Path(folder) / f"{role}.npy") for role in ROLES}
