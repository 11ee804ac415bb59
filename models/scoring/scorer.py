"""The scorer: histories as of a time → calibrated estimates, score, grade, reasons, decision.

Backfill, the endpoint, `evaluate` and a notebook all call this one class.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from models.data.features import Features, features
from models.data.history import History, view
from models.nets.fusion import MODALITIES
from models.nets.heads import most_log_amount, spread
from models.nets.network import Outputs
from models.scoring import answer, artifact, policy, reasons, scorecard
from models.scoring.calibrate import AmountCalibrator, BinaryCalibrator
from models.scoring.config import ExpertName
from models.scoring.expert import Seen
from models.scoring.predict import Encoded, Predictor
from models.scoring.stack import ALONE, NETWORK, TaskStack, combine

INTERVAL = (0.05, 0.95)  # of a probability: over the calibration's bootstrap replicates
AMOUNT_INTERVAL = (0.1, 0.9)  # of an amount: of its predictive distribution
NO_STACK = TaskStack(weights=ALONE)

Floats = NDArray[np.float64]


class Scorer:
    """A loaded model. Scores do not depend on which rows are scored together beyond 1e-6."""

    def __init__(self, loaded: artifact.Artifact) -> None:
        spec = loaded.spec
        self.artifact = loaded
        self.spec = spec
        self.predictor = Predictor(
            loaded.network,
            spec.stats,
            loaded.tokenizer,
            spec.features.max_tokens,
            spec.precision,
        )
        self.experts = loaded.experts
        self._reasons = reasons.reasons_of(spec.stats.vocabulary)

    @classmethod
    def load(cls, path: str | Path) -> "Scorer":
        """Read and verify a model. Raises UserError when it is damaged or not one."""
        return cls(artifact.load(Path(path)))

    def score(self, history: History, rows: pl.DataFrame) -> pl.DataFrame:
        """Scores of users as of their times.

        `rows`: row (0 … n−1), user_key, as_of [us, UTC], optionally proposed_amount and
        proposed_category (null: none is proposed). Returned, in the same order: row, user_key,
        as_of, baseline_date, graph_date, saturated; a struct a task ({probability, low, high} or
        {amount, low, high}); score 0–100, grade; weights {text, behaviour, tabular, social} of
        the network's attention;
        reasons [{code, text, effect in log odds}]; decision {action, review_level, limit, tier};
        model_sha256.
        """
        seen = view(history, rows, self.spec.features.history)
        known = features(seen, self.spec.stats.vocabulary, self.spec.features)
        proposed = rows["proposed_amount"] if "proposed_amount" in rows.columns else None
        return self.score_features(known, proposed)

    def score_features(self, known: Features, proposed: pl.Series | None = None) -> pl.DataFrame:
        """Scores of feature rows, as `score` gives them."""
        heard = {source for name in self.spec.tasks for source in self._heard(name)}
        parts = [self._estimate(*read) for read in self._read(known, heard)]
        base = known.frame.select(answer.BEFORE)
        if not parts:
            parts = [self._estimate_none()]
        estimates = pl.concat(parts)
        result = pl.concat([base, estimates], how="horizontal")
        asked = None if proposed is None else proposed.cast(pl.Float64).to_numpy()
        model = pl.lit(self.artifact.sha256).alias("model_sha256")
        judged = result.with_columns(*self._judge(estimates, asked), model)
        return judged.select(answer.columns(self.spec.tasks))

    @torch.inference_mode()
    def log_odds(self, known: Features, task: str) -> Floats:
        """(N,) of a binary task: the log odds of the probability that `score_features` gives.

        Without intervals, reasons or a decision, which cost many times as much.
        """
        parts = [np.empty(0)]
        for _, outputs, seen in self._read(known, self._heard(task)):
            parts.append(self._log_odds(task, outputs.tasks[task], seen))
        return np.concatenate(parts)

    @torch.inference_mode()
    def alone(self, known: Features) -> pl.DataFrame:
        """What each source of a stack says by itself, calibrated: to compare, no part of a score.

        One struct a task {network, lightgbm …} of probabilities or amounts; no column for a model
        without a stack, no field for a source that a task does not have.
        """
        parts = []
        for _, outputs, seen in self._read(known, self.experts):
            columns = []
            for name, stack in self.spec.stack.items():
                sources = [source for source in self.experts if source in stack.alone]
                values = self._values(name, outputs.tasks[name], seen, sources)
                own = {source: c.apply(values[source]) for source, c in stack.alone.items()}
                columns.append(pl.DataFrame(own).to_struct(name))
            parts.append(pl.DataFrame(columns))
        return pl.concat(parts) if parts else pl.DataFrame()

    @torch.inference_mode()
    def _read(
        self, known: Features, experts: Collection[ExpertName]
    ) -> Iterator[tuple[Encoded, Outputs, Seen]]:
        """Batch by batch: its rows, what the network answers, what these experts see of them."""
        for encoded in self.predictor.encode(known):
            outputs = self.predictor.network.fuse(encoded.vectors_BMD, encoded.known_BM)
            seen = {source: self.experts[source].read(encoded.frame) for source in experts}
            yield encoded, outputs, seen

    @torch.inference_mode()
    def _estimate(self, encoded: Encoded, outputs: Outputs, seen: Seen) -> pl.DataFrame:
        """Task structs, weights and reasons of one batch."""
        columns = [self._task(name, outputs.tasks[name], seen) for name in self.spec.tasks]
        weights = pl.DataFrame(
            outputs.weight_BM.double().numpy(), schema=list(MODALITIES), orient="row"
        ).to_struct("weights")
        effect_BR = reasons.effects(
            self.predictor, encoded, self.spec.roles.pd, self._reasons, self._log_odds,
            {source: self.experts[source] for source in self._heard(self.spec.roles.pd)}, seen,
        )  # fmt: skip
        return pl.DataFrame([*columns, weights, reasons.top_reasons(effect_BR, self._reasons)])

    def _estimate_none(self) -> pl.DataFrame:
        """The columns of `_estimate` with no rows."""
        value = {"binary": "probability", "amount": "amount"}
        kinds = {name: value[task.kind] for name, task in self.spec.tasks.items()}
        schema: dict[str, pl.DataType] = {
            name: pl.Struct({kind: pl.Float64, "low": pl.Float64, "high": pl.Float64})
            for name, kind in kinds.items()
        }
        schema["weights"] = pl.Struct(dict.fromkeys(MODALITIES, pl.Float64))
        schema["reasons"] = pl.List(reasons.TYPE)
        return pl.DataFrame(schema=schema)

    def _stack(self, task: str) -> TaskStack:
        return self.spec.stack.get(task, NO_STACK)

    def _heard(self, task: str) -> list[ExpertName]:
        """The experts that have a say in a task, or in its interval."""
        return [source for source in self.experts if source in self._stack(task).sources]

    def _values(
        self, task: str, output: Tensor, seen: Seen, sources: Iterable[ExpertName]
    ) -> dict[str, Floats]:
        """The raw values of a task: the network's, and those of some experts."""
        values = {NETWORK: self.predictor.value(task, output)}
        for source in sources:
            values[source] = self.experts[source].raw(task, seen[source])
        return values

    def _log_odds(self, task: str, output: Tensor, seen: Seen) -> Floats:
        """The log odds of a binary task's final probability."""
        calibrator = self.spec.calibrators[task]
        assert isinstance(calibrator, BinaryCalibrator)
        values = self._values(task, output, seen, self._heard(task))
        return calibrator.log_odds(combine("binary", self._stack(task).weights, values))

    def _task(self, name: str, output: Tensor, seen: Seen) -> pl.Series:
        calibrator, kind = self.spec.calibrators[name], self.spec.tasks[name].kind
        values = self._values(name, output, seen, self._heard(name))
        value = calibrator.apply(combine(kind, self._stack(name).weights, values))
        if isinstance(calibrator, AmountCalibrator):
            low, high = self._amount_interval(name, output, value, values[NETWORK])
            frame = pl.DataFrame({"amount": value, "low": low, "high": high})
        else:
            low, high = self._probability_interval(name, values, value)
            frame = pl.DataFrame({"probability": value, "low": low, "high": high})
        return frame.to_struct(name)

    def _probability_interval(
        self, name: str, values: dict[str, Floats], value: Floats
    ) -> tuple[Floats, Floats]:
        replicates = self.spec.replicates.get(name, ())
        if not replicates:
            return value, value
        weights = self._stack(name).replicates or (ALONE,) * len(replicates)
        pairs = zip(replicates, weights, strict=True)
        spread_NB = np.stack([one.apply(combine("binary", own, values)) for one, own in pairs])
        low, high = np.quantile(spread_NB, INTERVAL, axis=0)
        return np.minimum(low, value), np.maximum(high, value)

    def _amount_interval(
        self, name: str, output_B3: Tensor, value: Floats, expected: Floats
    ) -> tuple[Floats, Floats]:
        """Quantiles of the network's zero-inflated log-normal, moved as its mean was moved.

        Widened to hold the mean, which a small chance of a large amount can carry beyond them.
        """
        target = self.spec.stats.targets[name]
        some = torch.sigmoid(output_B3[:, 0].double()).numpy()
        mu = target.log_mean + target.log_std * output_B3[:, 1].double().numpy()
        sigma = target.log_std * spread(output_B3[:, 2].double()).numpy()
        shift = np.divide(value, expected, out=np.ones_like(value), where=expected > 0)
        bounds = []
        for q in AMOUNT_INTERVAL:
            inside = np.clip((q - (1 - some)) / np.maximum(some, 1e-12), 1e-12, 1 - 1e-12)
            amount = np.exp(np.minimum(mu + sigma * ndtri(inside), most_log_amount(target)))
            bounds.append(np.where(q <= 1 - some, 0.0, amount * shift))
        return np.minimum(bounds[0], value), np.maximum(bounds[1], value)

    def _judge(self, estimates: pl.DataFrame, proposed: Floats | None) -> list[pl.Series]:
        """score, grade and decision."""
        roles = self.spec.roles
        pd = _field(estimates, roles.pd, "probability")
        nothing = np.full(len(pd), np.nan)
        fraud = _field(estimates, roles.fraud, "probability") if roles.fraud else nothing
        spend = _field(estimates, roles.spend, "amount") if roles.spend else nothing
        score = scorecard.score(pd, self.spec.scorecard)
        grade = scorecard.grade(pd, self.spec.scorecard)
        decisions = policy.decide(
            score, grade, pd, fraud, spend, self.spec.policy, proposed=proposed
        )
        return [
            pl.Series("score", score),
            pl.Series("grade", grade.astype(object), dtype=pl.String),
            decisions.to_frame().to_struct("decision"),
        ]


def _field(estimates: pl.DataFrame, task: str, field: str) -> Floats:
    return estimates[task].struct.field(field).to_numpy()
