"""The expert tfidf: read again it answers the same, a row alone as in company."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.data.features import Features
from models.data.schema import UserError
from models.data.tasks import Task
from models.scoring.expert import fit_experts
from models.scoring.metrics import measure
from models.scoring.terms import TermExpert, fit_term_expert

TASKS = {"default": Task(kind="binary"), "spend": Task(kind="amount")}
N = 400
WORDS = {
    "en": (("lost", "my", "job", "cannot", "pay"), ("great", "phone", "fast", "parcel", "thanks")),
    "zh": (("失业", "还不上", "欠债"), ("好评", "很快", "喜欢")),
}


def world(seed: int, language: str = "en") -> pl.DataFrame:
    """Texts of the troubled and of the calm, some of nobody; an outcome, and an amount."""
    rng = np.random.default_rng(seed)
    troubled = rng.random(N) < 0.4
    space = " " if language == "en" else ""
    texts = [
        [
            space.join(rng.choice(WORDS[language][int(not bad)], 3))
            for _ in range(rng.integers(0, 3))
        ]
        for bad in troubled
    ]
    y = (rng.random(N) < np.where(troubled, 0.7, 0.1)).astype(float)
    spend = np.where(rng.random(N) < 0.7, np.exp(3 + 1.5 * troubled), -5.0)
    return pl.DataFrame({"texts": texts, "y_default": y, "y_spend": spend})


@pytest.fixture(scope="module")
def expert() -> TermExpert:
    return fit_term_expert(world(1), world(2), TASKS)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_it_learns(language: str) -> None:
    expert = fit_term_expert(world(1, language), world(2, language), TASKS)
    test = world(3, language)
    x = expert.read(test)
    assert measure("auc", test["y_default"], expert.raw("default", x)) > 0.65
    spend = expert.raw("spend", x)
    assert measure("spearman", test["y_spend"], spend) > 0.1 and (spend >= 0).all()


def phrases(seed: int, how_long: int) -> pl.DataFrame:
    """Four words in every order; the outcome follows from whether so many stand together."""
    rng = np.random.default_rng(seed)
    words = np.array(("who", "do", "not", "pay"))
    said = rng.permuted(np.tile(words, (4 * N, 1)), axis=1)
    runs = [" ".join(row) for row in said]
    asked = " ".join(words[-how_long:])
    p = np.where([asked in run for run in runs], 0.9, 0.1)
    y = (rng.random(4 * N) < p).astype(float)
    return pl.DataFrame({"texts": [[run] for run in runs], "y_default": y})


@pytest.mark.parametrize("how_long", [2, 3])
def test_terms_are_as_long_as_the_select_role_says(how_long: int) -> None:
    task = {"default": TASKS["default"]}
    expert = fit_term_expert(phrases(1, how_long), phrases(2, how_long), task)
    assert expert.terms.longest == how_long


def test_every_text_counts(expert: TermExpert) -> None:
    once, twice, other = ["cannot pay"], ["cannot pay", "cannot pay"], ["cannot pay", "fast parcel"]
    x = expert.read(pl.DataFrame({"texts": [once, twice, other, ["fast parcel"]]})).toarray()
    np.testing.assert_array_equal(x[1], 2 * x[0])
    np.testing.assert_array_equal(x[2], x[0] + x[3])
    assert (np.square(x[[0, 3]]).sum(1) > 0.99).all()


def test_a_row_alone_has_the_bits_that_it_has_in_company(expert: TermExpert) -> None:
    test = world(3)
    for task in TASKS:
        whole = expert.raw(task, expert.read(test))
        alone = [expert.raw(task, expert.read(test[k]))[0] for k in range(40)]
        np.testing.assert_array_equal(whole[:40], alone)
        assert expert.raw(task, expert.read(test.head(0))).shape == (0,)


def test_what_is_read_is_what_was_written(expert: TermExpert, tmp_path: Path) -> None:
    expert.write(tmp_path, tuple(TASKS))
    again, test = TermExpert.load(tmp_path, TASKS), world(3)
    for task in TASKS:
        whole = expert.raw(task, expert.read(test))
        np.testing.assert_array_equal(again.raw(task, again.read(test)), whole)


def test_without_texts_is_who_never_wrote(expert: TermExpert) -> None:
    test = world(3)
    x = expert.without(expert.read(test), [("text", (), ()), ("social", (), ()), ("pay", (1,), ())])
    actual, no_text, *others = np.split(expert.raw("default", x), 4)
    silent = test.with_columns(texts=pl.lit([], dtype=pl.List(pl.String)))
    np.testing.assert_array_equal(no_text, expert.raw("default", expert.read(silent)))
    for other in others:
        np.testing.assert_array_equal(other, actual)
    wrote = test["texts"].list.len().to_numpy() > 0
    assert (no_text[~wrote] == actual[~wrote]).all() and (no_text[wrote] != actual[wrote]).any()


def test_a_task_without_an_outcome_to_judge_by_has_no_line() -> None:
    select = world(2).with_columns(y_spend=pl.lit(None, dtype=pl.Float64))
    assert set(fit_term_expert(world(1), select, TASKS).tasks) == {"default"}


@pytest.mark.parametrize(
    ("texts", "said"), [([], "no letters"), (["…"], "no letters"), (None, "no texts")]
)
def test_nothing_to_learn_from_is_said(texts: list[str] | None, said: str) -> None:
    frame = pl.DataFrame({"texts": [texts] * 3}, schema={"texts": pl.List(pl.String)})
    bare = frame.drop("texts") if texts is None else frame
    with pytest.raises(UserError, match=said):
        fit_term_expert(bare, bare, {})


def test_a_text_that_many_wrote_is_learned_from() -> None:
    """One of a list of answers: no word of it stands in another text."""
    answers = pl.Series(["job loss", "medical bills", None] * N)
    fit = pl.DataFrame({"texts": [[] if a is None else [a] for a in answers]})
    fit = fit.with_columns(y_default=pl.Series([1.0, 0.0, 0.0] * N))
    expert = fit_term_expert(fit, fit, {"default": TASKS["default"]})
    asked, other, silent = expert.raw("default", expert.read(fit[:3]))
    assert asked > max(other, silent)


def test_a_stack_names_its_expert() -> None:
    bare = pl.DataFrame({"texts": [[]] * 3}, schema={"texts": pl.List(pl.String)})
    rows = Features(bare, (), (), ())
    with pytest.raises(UserError, match=r"stack\.experts: tfidf: .*no letters"):
        fit_experts(("tfidf",), rows, rows, {}, seed=1)


def test_a_file_of_other_lengths_is_refused(expert: TermExpert, tmp_path: Path) -> None:
    expert.write(tmp_path, tuple(TASKS))
    path = tmp_path / "terms.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"idf":[', '"idf":[1.0,'))
    with pytest.raises(ValueError, match="terms with"):
        TermExpert.load(tmp_path, TASKS)
