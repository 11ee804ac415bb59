"""What a model of the simulated marketplace loses with a modality, beside what the oracle loses.

The oracle's log-odds of default are a sum of a term a modality and one interaction. Withheld, the
oracle's term stands at its mean (`ray_jobs.market.risk`); the model, as it was trained, is given
what that term reads in the way that says nothing of the user, and is scored by the same `Scorer`,
without reasons, intervals or decisions:

- text: nobody wrote anything;
- social: no tie is known;
- order: the term adds up topups straight before a cash-out less the reverse. Every run of topups
  and cash-outs is told once as it was and once backwards, which turns the sign of the term and
  keeps all else; the mean of both log-odds has the term at its mean, 0;
- tabular: the term reads counts, sums, hours, profile and proposal. Tabular columns stand at the
  fit role's medians, profile levels are unknown, and since the behaviour tower could count again,
  every event but topups and cash-outs is a view of the commonest category, and all are at noon;
  types and places of topups and cash-outs, so their order, stay.

The share is (AUC of the model − AUC without) / (AUC of the oracle − AUC without), both paired on
the same rows and resamples.
"""

from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import logit

from models.data.features import Features
from models.data.stats import Scale
from models.data.vocabulary import UNKNOWN, Vocabulary
from models.scoring.bootstrap import bootstrap, interval, once
from models.scoring.curves import Value
from models.scoring.evaluation import RESAMPLES
from models.scoring.scorer import Scorer
from ray_jobs.config import Config
from ray_jobs.evaluate import oracle_of
from ray_jobs.market.world import MODALITIES
from ray_jobs.snapshot import Snapshot

FloatArray = NDArray[np.float64]
WALLET = ("topup", "cash_out")
HARMLESS = "view"
NOON = 12
FIRST_CATEGORY = UNKNOWN + 1
TOLD = ("events_type", "events_category", "events_amount")  # what happened, not when


def losses(
    config: Config, made: Snapshot, scorer: Scorer, scored: pl.DataFrame
) -> dict[str, dict[str, Value]]:
    """Modality → AUC of the PD that `model` and `oracle` lose, and the model's `share` of it.

    `scored`: the model's predictions of the test role, in the order of the snapshot.
    """
    known, task = made.read("test"), config.roles.pd
    oracle = oracle_of(config)
    assert oracle is not None, "a simulated marketplace has an oracle"
    key = ["user_key", "as_of"]
    own = oracle.filter(pl.col("task") == task)
    truth = known.frame.select(*key, y=f"y_{task}").join(
        own, on=key, how="left", maintain_order="left"
    )
    told = (truth["y"].is_not_null() & truth["probability"].is_not_null()).to_numpy()
    whole = np.asarray(logit(_floats(scored[task].struct.field("probability"))))
    best, y = _floats(truth["probability"]), _floats(truth["y"])
    found = {}
    for modality in MODALITIES:
        less = log_odds_without(modality, scorer, known, task, whole)
        worst = _floats(truth[f"without_{modality}"])
        pairs = (whole[told], less[told]), (best[told], worst[told])
        found[modality] = share(y[told], *pairs, seed=config.seed, resamples=RESAMPLES)
    return found


def log_odds_without(
    modality: str, scorer: Scorer, known: Features, task: str, whole: FloatArray
) -> FloatArray:
    """(N,) the model's log odds of a binary task with a modality withheld.

    `whole`: those with all of them.
    """
    stats = scorer.spec.stats
    if modality == "order":
        return (whole + scorer.log_odds(mirrored(known, stats.vocabulary), task)) / 2
    if modality == "tabular":
        less = without_tabular(known, stats.vocabulary, stats.tabular)
    else:
        less = {"text": without_text, "social": without_social}[modality](known)
    return scorer.log_odds(less, task)


def without_text(known: Features) -> Features:
    """Of users who wrote nothing."""
    nothing = [pl.col(c).list.head(0) for c in ("texts", "texts_age_d")]
    return replace(known, frame=known.frame.with_columns(nothing))


def without_social(known: Features) -> Features:
    """Of users of whom no tie is known."""
    nothing = [pl.lit(None, dtype=known.frame.schema[c]).alias(c) for c in known.social]
    return replace(known, frame=known.frame.with_columns(nothing))


def mirrored(known: Features, vocabulary: Vocabulary) -> Features:
    """Runs of topups and cash-outs told backwards, at the times at which they were."""
    events = _exploded(known, vocabulary).with_columns(run=pl.struct("row", "wallet").rle_id())
    place = pl.int_range(pl.len()).over("run")
    turned = pl.when("wallet").then(-place).otherwise(place)
    return _with_events(known, events.sort("run", turned))


def without_tabular(known: Features, vocabulary: Vocabulary, fitted: dict[str, Scale]) -> Features:
    """Typical columns, and events that tell no more than the order of topups and cash-outs."""
    (view,) = _codes(vocabulary, (HARMLESS,))
    plain = {"events_type": view, "events_category": FIRST_CATEGORY, "events_amount": None}
    hidden = [
        pl.when("wallet").then(name).otherwise(pl.lit(value)).alias(name)
        for name, value in plain.items()
    ]
    events = _exploded(known, vocabulary).with_columns(hidden)
    medians = [pl.lit(_median(fitted[c]), dtype=pl.Float64).alias(c) for c in known.tabular]
    levels = [pl.lit(0, dtype=known.frame.schema[c]).alias(c) for c in known.categorical]
    noon = pl.col("events_hour").list.eval(pl.element() * 0 + NOON)
    told = _with_events(known, events)
    return replace(told, frame=told.frame.with_columns(*medians, *levels, noon))


def _exploded(known: Features, vocabulary: Vocabulary) -> pl.DataFrame:
    """(row, what happened, wallet: whether it was a topup or a cash-out), an event a row."""
    events = known.frame.select("row", *TOLD).explode(TOLD, empty_as_null=False)
    wallet = pl.col("events_type").is_in(_codes(vocabulary, WALLET))
    return events.with_columns(wallet=wallet)


def _with_events(known: Features, events: pl.DataFrame) -> Features:
    """The rows with what happened replaced."""
    types = known.frame.select(TOLD).schema
    lists = events.group_by("row", maintain_order=True).agg(TOLD)
    frame = known.frame.drop(TOLD).join(lists, on="row", how="left", maintain_order="left")
    told = [pl.col(c).fill_null(pl.lit([], dtype=kind)).cast(kind) for c, kind in types.items()]
    return replace(known, frame=frame.with_columns(told))


def share(
    y: FloatArray,
    model: tuple[FloatArray, FloatArray],
    oracle: tuple[FloatArray, FloatArray],
    *,
    seed: int,
    resamples: int,
) -> dict[str, Value]:
    """`model`, `oracle`: AUC lost from the first to the second scores; `share` of both."""
    scores = (*model, *oracle)
    auc = np.array([once("auc", y, score) for score in scores])
    draws = bootstrap(("auc",), y, scores, seed=seed, resamples=resamples)["auc"]
    ours, best = auc[0] - auc[1], auc[2] - auc[3]
    ours_R, best_R = draws[0] - draws[1], draws[2] - draws[3]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = interval(float(np.divide(ours, best)), np.divide(ours_R, best_R))
    found = {"model": interval(ours, ours_R), "oracle": interval(best, best_R), "share": ratio}
    return {name: Value.of(one) for name, one in found.items()}


def _floats(column: pl.Series) -> FloatArray:
    return np.asarray(column.cast(pl.Float64).to_numpy(), dtype=np.float64)


def _codes(vocabulary: Vocabulary, types: tuple[str, ...]) -> list[int]:
    codes: list[int] = vocabulary.type_codes(pl.Series(types)).tolist()
    return codes


def _median(scale: Scale) -> float | None:
    """The value whose score is 0; None of a column that was never two things."""
    if not scale.knots:
        return None
    return float(np.interp(0.0, scale.scores, scale.knots))
