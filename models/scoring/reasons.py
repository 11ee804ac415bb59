"""Reason codes: which part of what is known of a user raises the estimated risk the most.

Each group of inputs is replaced in turn — a modality is withheld, a group of tabular columns is
set to the fit role's median (missing where it knew nothing), categorical ones to the most frequent
level — and the rise in log odds of the final probability of default that its real value brings is
its effect (occlusion against a reference; Covert, Lundberg and Lee 2021, "Explaining by removing").
Only the tabular tower, the fusion and the experts are run again.

Shapes: B rows, M modalities, D width, F tabular and C categorical columns, R reasons, N rows of
all of them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.batch import Batch
from models.data.features import tabular_columns
from models.data.vocabulary import FIRST_LEVEL, Vocabulary
from models.nets.fusion import MODALITIES
from models.scoring.expert import Experts, Seen
from models.scoring.predict import ROWS, Encoded, Predictor

MOST = 4  # reasons given; US Regulation B's commentary holds more than four to be unhelpful
LEAST_EFFECT = 0.02  # in log odds
BY_TYPE = re.compile(r"(?s)(?:n|sum)_(.+)_\d+d|trend_(?:n|sum)_(.+)|recency_(.+)_d")
# a task, the network's output [N], what each expert sees of the N rows → log odds [N]
LogOdds = Callable[[str, Tensor, Seen], NDArray[np.float64]]
TYPE = pl.Struct({"code": pl.String, "text": pl.String, "effect": pl.Float64})

MODALITY_REASONS = {
    "text": "What the user wrote",
    "behaviour": "The course of the latest events",
    "social": "Ties to other users",
}
PROPOSED = "proposed"
GENERAL = {
    "trend": "Change of activity against earlier months",
    "recency": "Time since the last activity, and since the first",
    "night": "Share of activity at night",
    PROPOSED: "The proposed transaction against the user's habits",
    "amounts": "Amounts moved",
    "activity": "How much, and how varied, the activity is",
    "profile": "Declared profile",
}


@dataclass(frozen=True)
class Reason:
    """`columns`, `categories`: the places of the tabular and of the categorical columns that it
    stands for; none for a modality."""

    code: str
    text: str
    columns: tuple[int, ...] = ()
    categories: tuple[int, ...] = ()


def reasons_of(vocabulary: Vocabulary) -> tuple[Reason, ...]:
    """The reasons that a model can give: modalities, event types, general groups."""
    groups: dict[str, list[int]] = {}
    for index, column in enumerate(tabular_columns(vocabulary)):
        groups.setdefault(_group(column, vocabulary), []).append(index)
    levels = tuple(
        k for k, column in enumerate(vocabulary.categorical) if vocabulary.levels.get(column)
    )
    if levels:
        groups.setdefault("profile", [])
    tabular = [
        Reason(code, _text(code), tuple(columns), levels if code == "profile" else ())
        for code, columns in groups.items()
    ]
    modalities = [Reason(code, text) for code, text in MODALITY_REASONS.items()]
    return (*modalities, *tabular)


def _text(code: str) -> str:
    kind, _, name = code.partition(":")
    return f"Events of type {name}" if kind == "event" else GENERAL[code]


def _group(column: str, vocabulary: Vocabulary) -> str:
    if column in vocabulary.numeric:
        return "profile"
    match = BY_TYPE.fullmatch(column)
    if match is not None:
        return f"event:{next(name for name in match.groups() if name is not None)}"
    for prefix, group in (
        ("trend", "trend"),
        ("recency", "recency"),
        ("tenure", "recency"),
        ("night", "night"),
        ("proposed", PROPOSED),
        ("sum", "amounts"),
        ("max", "amounts"),
        ("amount", "amounts"),
    ):
        if column.startswith(prefix):
            return group
    return "activity"


@torch.inference_mode()
def effects(
    predictor: Predictor,
    encoded: Encoded,
    task: str,
    reasons: tuple[Reason, ...],
    log_odds: LogOdds,
    experts: Experts,
    seen: Seen,
) -> NDArray[np.float64]:
    """[B, R]: the rise in log odds of a binary task that each reason's real inputs bring.

    `log_odds` are those of the final probability, `experts` those that have a say in it, `seen`
    what they have read of the rows. What is replaced for the network is replaced for them, and
    changes nothing where they do not read it.
    """
    at_once = max(1, ROWS // len(encoded.batch))  # reasons: bounds memory as it does for a batch
    outputs = [predictor.network.fuse(encoded.vectors_BMD, encoded.known_BM).tasks[task]]
    for first in range(0, len(reasons), at_once):
        vectors_NMD, known_NM = _without(predictor, encoded, reasons[first : first + at_once])
        outputs.append(predictor.network.fuse(vectors_NMD, known_NM).tasks[task])
    parts = [(reason.code, reason.columns, reason.categories) for reason in reasons]
    without_each = {source: one.without(seen[source], parts) for source, one in experts.items()}
    log_odds_N = log_odds(task, torch.cat(outputs), without_each)
    actual_B, *without = np.split(log_odds_N, 1 + len(reasons))
    effect_BR = actual_B[:, None] - np.stack(without, axis=1)
    for place, reason in enumerate(reasons):
        if reason.code == PROPOSED:  # who proposes nothing is not to be told of a proposal
            nothing_B = encoded.batch.missing_BF[:, list(reason.columns)].bool().all(1)
            effect_BR[nothing_B.numpy(), place] = 0.0
    return effect_BR


def _without(
    predictor: Predictor, encoded: Encoded, reasons: Sequence[Reason]
) -> tuple[Tensor, Tensor]:
    """The towers' vectors [R·B, M, D], and what is known [R·B, M], without each reason's inputs."""
    tabular = [k for k, reason in enumerate(reasons) if reason.code not in MODALITY_REASONS]
    vectors_RBMD = encoded.vectors_BMD.repeat(len(reasons), 1, 1, 1)
    known_RBM = encoded.known_BM.repeat(len(reasons), 1, 1)
    tabular_RBD = _tabular_without(predictor, encoded.batch, [reasons[k] for k in tabular])
    vectors_RBMD[tabular, :, MODALITIES.index("tabular")] = tabular_RBD
    for k, reason in enumerate(reasons):
        if reason.code in MODALITY_REASONS:
            known_RBM[k, :, MODALITIES.index(reason.code)] = False
    return vectors_RBMD.flatten(0, 1), known_RBM.flatten(0, 1)


def _tabular_without(predictor: Predictor, batch: Batch, reasons: Sequence[Reason]) -> Tensor:
    """[R, B, D] of the tabular tower, with each reason's columns at the fit role's median, and at
    the most frequent level."""
    medians = [scale.median for scale in predictor.stats.tabular.values()]
    median_F = torch.tensor([median or 0.0 for median in medians])
    unknown_F = torch.tensor([float(median is None) for median in medians])
    tabular_RBF = batch.tabular_BF.repeat(len(reasons), 1, 1)
    missing_RBF = batch.missing_BF.repeat(len(reasons), 1, 1)
    categorical_RBC = batch.categorical_BC.repeat(len(reasons), 1, 1)
    for k, reason in enumerate(reasons):
        columns = list(reason.columns)
        tabular_RBF[k, :, columns] = median_F[columns]
        missing_RBF[k, :, columns] = unknown_F[columns]
        categorical_RBC[k, :, list(reason.categories)] = FIRST_LEVEL
    vector_ND = predictor.network.tabular.vectors(
        tabular_RBF.flatten(0, 1), missing_RBF.flatten(0, 1), categorical_RBC.flatten(0, 1)
    )
    vector_RBD: Tensor = vector_ND.view(len(reasons), len(batch), vector_ND.shape[1])
    return vector_RBD


def top_reasons(effect_BR: NDArray[np.float64], reasons: tuple[Reason, ...]) -> pl.Series:
    """The `MOST` largest effects of each row as a list of {code, text, effect}, largest first."""
    order_BR = np.argsort(-effect_BR, axis=1, kind="stable")[:, :MOST]
    rows = [
        [
            {"code": reasons[k].code, "text": reasons[k].text, "effect": float(effect[k])}
            for k in order
            if effect[k] >= LEAST_EFFECT
        ]
        for effect, order in zip(effect_BR, order_BR, strict=True)
    ]
    return pl.Series("reasons", rows, dtype=pl.List(TYPE))
