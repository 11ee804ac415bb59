"""Reason codes: which part of what is known of a user raises the estimated risk the most.

Each group of inputs is replaced in turn — a modality is withheld, a group of tabular columns is
set to the fit role's median (missing where it knew nothing), categorical ones to the most frequent
level — and the rise in log odds of the final probability of default that its real value brings is
its effect (occlusion against a reference; Covert, Lundberg and Lee 2021, "Explaining by removing").
Only the tabular tower, the fusion and the experts are run again.

Shapes: B rows, M modalities, D width, F tabular and C categorical columns, R reasons, N rows of all
reasons.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.features import tabular_columns
from models.data.vocabulary import FIRST_LEVEL, Vocabulary
from models.nets.fusion import MODALITIES
from models.scoring.expert import Experts, Seen
from models.scoring.predict import Encoded, Predictor

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
    network = predictor.network
    outputs = [network.fuse(encoded.vectors_BMD, encoded.known_BM).tasks[task]]
    for reason in reasons:
        vectors_BMD, known_BM = encoded.vectors_BMD, encoded.known_BM
        if reason.code not in MODALITY_REASONS:
            vectors_BMD = vectors_BMD.clone()
            tabular_BD = _tabular_without(predictor, encoded, reason)
            vectors_BMD[:, MODALITIES.index("tabular")] = tabular_BD
        else:
            known_BM = known_BM.clone()
            known_BM[:, MODALITIES.index(reason.code)] = False
        outputs.append(network.fuse(vectors_BMD, known_BM).tasks[task])
    parts = [(reason.code, reason.columns, reason.categories) for reason in reasons]
    without_each = {source: one.without(seen[source], parts) for source, one in experts.items()}
    actual_B, *without = np.split(log_odds(task, torch.cat(outputs), without_each), len(outputs))
    effect_BR = actual_B[:, None] - np.stack(without, axis=1)
    for place, reason in enumerate(reasons):
        if reason.code == PROPOSED:  # who proposes nothing is not to be told of a proposal
            nothing_B = encoded.batch.missing_BF[:, list(reason.columns)].bool().all(1)
            effect_BR[nothing_B.numpy(), place] = 0.0
    return effect_BR


def _tabular_without(predictor: Predictor, encoded: Encoded, reason: Reason) -> Tensor:
    """[B, D] of the tabular tower, with the reason's columns at the fit role's median, and at the
    most frequent level."""
    columns, batch = list(reason.columns), encoded.batch
    scales = list(predictor.stats.tabular.values())
    medians = [scales[k].median for k in columns]
    tabular_BF, missing_BF = batch.tabular_BF.clone(), batch.missing_BF.clone()
    tabular_BF[:, columns] = torch.tensor([median or 0.0 for median in medians])
    missing_BF[:, columns] = torch.tensor([float(median is None) for median in medians])
    categorical_BC = batch.categorical_BC.clone()
    categorical_BC[:, list(reason.categories)] = FIRST_LEVEL
    median = replace(
        batch, tabular_BF=tabular_BF, missing_BF=missing_BF, categorical_BC=categorical_BC
    )
    vector_BD: Tensor = predictor.network.tabular(median)[0]
    return vector_BD


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
