"""Columns that tell something are kept, noise is not; the model is the same after a round trip."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from models.data.batch import Tokenizer
from models.data.features import Features
from models.data.history import History
from models.data.schema import UserError
from models.data.tasks import Task
from models.nets.network import Network
from models.scoring import artifact
from models.scoring.artifact import Artifact, ModelSpec
from models.scoring.reasons import reasons_of
from models.scoring.scorer import Scorer
from models.scoring.selection import most_important

USERS = 400
TASKS = {"default": Task(kind="binary"), "spend": Task(kind="amount")}
NAMES = ("noise 1", "of default", "noise 2", "of spend", "noise 3")


def world(seed: int = 0) -> Features:
    """Two rows a user; one column tells of each task, the others of nothing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * USERS, len(NAMES)))
    frame = pl.DataFrame(x, schema=list(NAMES), orient="row").with_columns(
        user_key=np.arange(2 * USERS) // 2,
        y_default=(x[:, 1] + rng.normal(0, 0.5, len(x)) > 1).astype(float),
        y_spend=np.where(x[:, 3] > 0, np.exp(x[:, 3]), 0.0),
    )
    return Features(frame, NAMES, (), ())


def test_what_tells_of_any_task_is_kept_in_order() -> None:
    assert most_important(world(), TASKS, 2, seed=1) == ("of default", "of spend")
    assert most_important(world(), {"spend": TASKS["spend"]}, 1, seed=1) == ("of spend",)
    assert most_important(world(), TASKS, 5, seed=1) == NAMES


def test_rows_and_seed_alone_decide() -> None:
    """Among columns of noise, whatever the order of the rows of other users."""
    rows, tasks = world(), {"default": TASKS["default"]}
    found = [most_important(rows, tasks, 3, seed) for seed in (1, 1, 2, 3, 4)]
    assert found[0] == found[1] and len(set(found)) > 1
    assert all("of default" in kept for kept in found)


def test_a_task_without_an_outcome_has_no_say() -> None:
    rows = world()
    for nothing in (None, 0.0):
        silent = rows.frame.with_columns(y_spend=pl.lit(nothing, dtype=pl.Float64))
        kept = most_important(replace(rows, frame=silent), TASKS, 1, seed=1)
        assert kept == ("of default",)


def test_where_nothing_can_be_told_it_says_so() -> None:
    rows = world()
    few = replace(rows, frame=rows.frame.head(10))
    with pytest.raises(UserError, match=r"network\.tabular\.keep: trees of 8 rows"):
        most_important(few, TASKS, 2, seed=1)


@pytest.fixture
def kept(
    spec: ModelSpec, known: Features, tasks: dict[str, Task], make_network: Callable[..., Network]
) -> tuple[ModelSpec, Network]:
    """A model whose network sees eight columns."""
    names = most_important(known, tasks, 8, seed=1)
    stats = spec.stats.model_copy(update={"kept": names})
    return spec.model_copy(update={"stats": stats}), make_network(with_stats=stats)


def test_a_model_that_sees_some_columns_scores_the_same_once_loaded(
    kept: tuple[ModelSpec, Network],
    tokenizer: Tokenizer,
    history: History,
    rows: pl.DataFrame,
    tmp_path: Path,
) -> None:
    spec, network = kept
    before = Scorer(Artifact("", spec, network, tokenizer)).score(history, rows)
    path = artifact.save(tmp_path, spec, network, tokenizer)
    after = Scorer.load(path).score(history, rows)
    assert_frame_equal(before.drop("model_sha256"), after.drop("model_sha256"))


def test_a_column_that_is_not_seen_is_no_reason(
    kept: tuple[ModelSpec, Network], tokenizer: Tokenizer, history: History, rows: pl.DataFrame
) -> None:
    spec, network = kept
    assert spec.stats.kept is not None
    names = list(spec.stats.tabular)
    places = {names.index(name) for name in spec.stats.kept}
    scores = Scorer(Artifact("", spec, network, tokenizer)).score(history, rows)
    given = set(scores["reasons"].explode().drop_nulls().struct.field("code"))
    unseen = {
        reason.code
        for reason in reasons_of(spec.stats.vocabulary)
        if reason.columns and not reason.categories and not places.intersection(reason.columns)
    }
    assert unseen and given and not unseen & given
