"""The evaluation joins labels, predictions, baselines and the oracle by user, not by luck."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.data.schema import UserError
from models.data.tasks import Roles, Task
from models.scoring.baselines import Baselines
from models.scoring.evaluation import About, Evaluation, cuts_of, evaluate
from models.scoring.metrics import measure
from models.scoring.policy import PolicyConfig, decide
from models.scoring.scorecard import ScorecardConfig, grade, score

N = 400
TASKS = {"default": Task(kind="binary"), "fraud": Task(kind="binary"), "spend": Task(kind="amount")}
ROLES = Roles(pd="default", fraud="fraud", spend="spend")
SCORECARD, POLICY = ScorecardConfig(), PolicyConfig()
TIME = pl.Datetime("us", "UTC")
ABOUT = About(
    title="a test",
    made_at="2024-05-01 12:00 UTC",
    model_sha256="ab" * 32,
    data_versions={"events": "3"},
    seed=4,
    config="lake: x",
)


def world(seed: int) -> dict[str, Any]:
    """Arguments of `evaluate` for a model that is the truth with some noise."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-2, 1.2, N)
    p, model = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-(z + rng.normal(0, 0.5, N))))
    mean = np.exp(rng.normal(4, 1, N))
    default, fraud = (rng.random((2, N)) < np.stack([p, p / 4])).astype(float)
    as_of = pl.lit(datetime(2024, 4, 1, tzinfo=UTC)).cast(TIME)
    test = pl.DataFrame(
        {
            "row": np.arange(N),
            "user_key": rng.permutation(N) - N // 2,
            "default": rng.normal(size=N),  # a feature column may have the name of a task
            "y_default": default,
            "y_fraud": fraud,
            "y_spend": mean * rng.lognormal(0, 0.5, N),
        }
    ).with_columns(as_of=as_of)
    points, letters = score(model, SCORECARD), grade(model, SCORECARD)
    decided = decide(points, letters, model, model / 4, mean, POLICY).to_frame()
    predictions = pl.DataFrame({"row": test["row"], "score": points, "grade": letters.tolist()})
    predictions = predictions.with_columns(
        default=pl.struct(probability=pl.Series(model)),
        fraud=pl.struct(probability=pl.Series(model / 4)),
        spend=pl.struct(amount=pl.Series(mean)),
        weights=pl.struct(text=pl.lit(0.4), behaviour=pl.lit(0.6)),
        decision=pl.struct(*decided.get_columns()),
    )
    truths = {"default": (p, default), "fraud": (p / 4, fraud), "spend": (mean, test["y_spend"])}
    oracle = pl.concat(
        test.select("user_key", "as_of").with_columns(
            task=pl.lit(name),
            probability=pl.Series(expected),
            value=pl.Series(value),
            observed=pl.lit(True),
            without_text=pl.Series(rng.permutation(expected)),
        )
        for name, (expected, value) in truths.items()
    )
    constants = {"default": 0.15, "fraud": 0.04, "spend": 90.0}
    baselines = {name: {"constant": np.full(N, value)} for name, value in constants.items()}
    baselines["default"]["lightgbm"] = np.clip(p * rng.lognormal(0, 1, N), 0, 1)
    return {
        "test": test,
        "predictions": predictions,
        "baselines": Baselines(predictions=baselines, notes=("tfidf: left out",)),
        "about": ABOUT,
        "tasks": TASKS,
        "roles": ROLES,
        "scorecard": SCORECARD,
        "policy": POLICY,
        "oracle": oracle,
        "withheld": ("without_text",),
        "training": [
            {"epoch": 0, "train_loss": 0.5, "select_loss": 0.4, "seconds": 2.0, "rows_per_s": 1.0},
            {"epoch": 1, "train_loss": float("nan"), "select_loss": 0.3, "best": True},
        ],
        "accounts": {"ingest": {"rows in": 10, "accepted": 10}},
        "resamples": 40,
    }


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    return world(5)


@pytest.fixture(scope="module")
def evaluation(given: dict[str, Any]) -> Evaluation:
    return evaluate(**given)


def test_json_round_trip(evaluation: Evaluation) -> None:
    text = evaluation.model_dump_json()
    assert "NaN" not in text and "Infinity" not in text
    assert Evaluation.model_validate_json(text) == evaluation


def test_what_it_holds(given: dict[str, Any], evaluation: Evaluation) -> None:
    default = evaluation.tasks["default"]
    assert [c.name for c in default.contenders] == ["model", "constant", "lightgbm", "oracle"]
    p = given["predictions"]["default"].struct.field("probability")
    auc = default.contenders[0].scores.auc.value
    assert auc == pytest.approx(measure("auc", given["test"]["y_default"], p))
    assert default.oracle is not None and default.oracle.share.value > 0.8
    assert list(default.oracle.withheld) == ["without_text"]
    assert {d.metric for d in evaluation.tasks["spend"].differences} == {"spearman", "rmse"}
    assert sum(row.group.users for row in evaluation.grades) == evaluation.users == N
    assert evaluation.training[0].seconds == 2 and evaluation.training[1].train_loss is None
    assert evaluation.notes == ("tfidf: left out",)


def test_order_does_not_matter(given: dict[str, Any], evaluation: Evaluation) -> None:
    mixed = {name: given[name].sample(fraction=1, shuffle=True, seed=1) for name in
             ("predictions", "oracle")}  # fmt: skip
    assert evaluate(**{**given, **mixed}) == evaluation


def test_rows_that_were_not_scored(given: dict[str, Any]) -> None:
    kept = given["predictions"].filter(pl.col("row") % 3 != 0)
    result = evaluate(**{**given, "predictions": kept})
    assert result.users == kept.height == result.tasks["default"].rows
    assert f"{N - kept.height} of {N} test rows were not scored and are left out" in result.notes
    mine = given["baselines"].predictions["default"]["lightgbm"][kept["row"].to_numpy()]
    known = given["test"]["y_default"].to_numpy()[kept["row"].to_numpy()]
    lightgbm = result.tasks["default"].contenders[2]
    assert lightgbm.name == "lightgbm"
    assert lightgbm.scores.auc.value == pytest.approx(measure("auc", known, mine))


def test_hidden_outcomes_are_taken_from_the_oracle(given: dict[str, Any]) -> None:
    hidden = given["predictions"]["score"] < 60
    test = given["test"].with_columns(y_default=pl.when(~hidden).then("y_default"))
    keys = test.filter(hidden)["user_key"].implode()
    observed = ~((pl.col("task") == "default") & pl.col("user_key").is_in(keys))
    result = evaluate(
        **{**given, "test": test, "oracle": given["oracle"].with_columns(observed=observed)}
    )
    default = result.tasks["default"]
    assert default.kind == "binary"
    assert default.known == (~hidden).sum()
    assert default.through_the_door[0].scores.rows == N
    assert default.through_the_door[0].scores.base_rate == given["test"]["y_default"].mean()
    fraud = result.tasks["fraud"]
    assert fraud.kind == "binary" and fraud.through_the_door == ()


def test_without_an_oracle(given: dict[str, Any]) -> None:
    result = evaluate(**{**given, "oracle": None, "withheld": ()})
    assert all(task.oracle is None for task in result.tasks.values())
    assert "oracle" not in {c.name for t in result.tasks.values() for c in t.contenders}


def test_one_outcome_only_and_none_at_all(given: dict[str, Any]) -> None:
    test = given["test"].with_columns(y_default=pl.lit(0.0), y_fraud=pl.lit(None, dtype=pl.Float64))
    result = evaluate(**{**given, "test": test})
    assert result.tasks["default"].contenders[0].scores.auc.value is None
    assert result.tasks["fraud"].contenders == ()
    assert "tasks.fraud: no known outcome in the test role" in result.notes
    assert any(note.startswith("tasks.default: one outcome only") for note in result.notes)
    assert Evaluation.model_validate_json(result.model_dump_json()) == result


def test_one_user(given: dict[str, Any]) -> None:
    baselines = Baselines(predictions={})
    result = evaluate(**{**given, "test": given["test"].head(1), "baselines": baselines})
    assert result.users == 1 and result.grades[-1].approval_rate == 1


def test_users_of_several_rows_are_taken_whole(given: dict[str, Any]) -> None:
    """Four rows of a user, which say the same, tell no more of the model than one."""
    times = pl.concat(
        given["test"].with_columns(
            row=pl.col("row") + k * N, as_of=pl.col("as_of") + pl.duration(days=k)
        )
        for k in range(4)
    )
    predictions = given["predictions"]
    again = given | {
        "test": times,
        "predictions": pl.concat(
            predictions.with_columns(row=pl.col("row") + k * N) for k in range(4)
        ),
        "baselines": Baselines({}),
        "oracle": None,
        "resamples": 200,
    }
    found, note = evaluate(**again), f"the {4 * N} test rows are of {N} users: each as-of time"
    assert any(one.startswith(note) for one in found.notes)
    once = evaluate(**given | {"baselines": Baselines({}), "oracle": None, "resamples": 200})
    assert not once.notes
    for task, metric in (("default", "auc"), ("spend", "spearman")):
        widths = []
        for one in (once, found):
            value = getattr(one.tasks[task].contenders[0].scores, metric)
            widths.append(value.high - value.low)
        assert widths[1] == pytest.approx(widths[0], rel=0.2)


def test_nobody_scored(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no row of the test role was scored"):
        evaluate(**{**given, "predictions": given["predictions"].clear()})


def test_an_oracle_with_two_answers(given: dict[str, Any]) -> None:
    twice = pl.concat([given["oracle"], given["oracle"].head(1)])
    with pytest.raises(UserError, match="'default' has two rows of one user and time"):
        evaluate(**{**given, "oracle": twice})


def test_an_oracle_of_other_tasks(given: dict[str, Any]) -> None:
    result = evaluate(**{**given, "oracle": given["oracle"].with_columns(task=pl.lit("other"))})
    assert all(task.oracle is None for task in result.tasks.values())


def test_a_stack_is_shown_with_its_parts(given: dict[str, Any]) -> None:
    """The whole and its parts; a network that is the model itself is not shown twice."""
    predictions = given["predictions"]
    alone = pl.struct(
        default=pl.struct(network=pl.Series(np.full(N, 0.2)), lightgbm=pl.lit(0.1)),
        fraud=pl.struct(
            network=predictions["fraud"].struct.field("probability"), lightgbm=pl.lit(0.1)
        ),
        spend=pl.struct(network=pl.lit(1.0)),
    )
    stacked = predictions.with_columns(alone=alone).sample(fraction=1.0, shuffle=True, seed=1)
    baselines = Baselines({name: {"constant": np.full(N, 0.5)} for name in TASKS})
    result = evaluate(**{**given, "predictions": stacked, "baselines": baselines})
    names = {task: [c.name for c in r.contenders] for task, r in result.tasks.items()}
    assert names["default"] == ["model", "network", "lightgbm", "constant", "oracle"]
    assert names["fraud"] == ["model", "lightgbm", "constant", "oracle"]
    assert names["spend"] == ["model", "network", "constant", "oracle"]
    pairs = {task: {(d.of, d.against) for d in r.differences} for task, r in result.tasks.items()}
    assert ("network", "lightgbm") in pairs["default"]
    assert {one for task in ("fraud", "spend") for one, _ in pairs[task]} == {"model"}
    default = {c.name: c.scores for c in result.tasks["default"].contenders}
    assert default["network"].mean_predicted == pytest.approx(0.2)


@pytest.mark.parametrize(("decline", "approve"), [(0, 0), (0, 60), (0, 100), (100, 100)])
def test_where_scores_are_clipped_cuts_are_the_policy_too(decline: float, approve: float) -> None:
    policy = PolicyConfig(decline_below=decline, approve_at=approve)
    p = np.r_[0.0, 1e-9, np.linspace(0.001, 0.999, 200), 1 - 1e-9, 1.0]
    points, nothing = score(p, SCORECARD), np.full(len(p), np.nan)
    action = decide(points, grade(p, SCORECARD), p, nothing, nothing, policy).action
    cuts = {cut.name: cut for cut in cuts_of("default", ROLES, SCORECARD, policy)}
    by_policy = {"declined": action == "decline", "not approved": action != "approve"}
    for name, flagged in by_policy.items():
        found = p >= cuts[name].probability if name in cuts else np.zeros(len(p), dtype=bool)
        np.testing.assert_array_equal(found, flagged)
    assert cuts  # contenders are compared at the first


def test_cuts_are_the_policy(given: dict[str, Any]) -> None:
    """A probability is flagged exactly where the policy's score threshold is missed."""
    declined, not_approved = cuts_of("default", ROLES, SCORECARD, POLICY)
    p = given["predictions"]["default"].struct.field("probability").to_numpy()
    points = score(p, SCORECARD)
    np.testing.assert_array_equal(p >= declined.probability, points < POLICY.decline_below)
    np.testing.assert_array_equal(p >= not_approved.probability, points < POLICY.approve_at)
    assert declined.probability == pytest.approx(0.08)
    assert [c.probability for c in cuts_of("fraud", ROLES, SCORECARD, POLICY)] == [0.8, 0.3]
    assert [c.probability for c in cuts_of("buys", ROLES, SCORECARD, POLICY)] == [0.5]
