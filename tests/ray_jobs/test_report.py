"""The page is whole, stands alone, escapes what it is given, and is written in one step."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from models.data.tasks import Roles, Task
from models.scoring.baselines import Baselines
from models.scoring.evaluation import About, Evaluation, evaluate
from models.scoring.policy import PolicyConfig, decide
from models.scoring.scorecard import ScorecardConfig, grade, score
from ray_jobs.report import render_report, summary_tables, words, write_report
from ray_jobs.report.plots import _square_root_ticks

N = 300
HOSTILE = '<script>alert("1")</script> $x^{ {{ 7 * 7 }} 违约'
SECTIONS = (
    "Summary", "Discrimination", "Calibration", "Policy thresholds", "Scores by outcome",
    "Grades and decisions", "Modality weights", "Amounts", "Training", "Accounts",
    "How this was made",
)  # fmt: skip
VOID = {"meta", "br", "img", "link", "input", "hr"}


def make(
    pd: str = "default",
    note: str = "tfidf: left out",
    currency: str = "CNY",
    outcome: float | None = None,
) -> Evaluation:
    """An evaluation of a noisy model; `outcome`: everyone's, NaN for unknown."""
    rng = np.random.default_rng(5)
    z = rng.normal(-2, 1.2, N)
    p, model = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-(z + rng.normal(0, 0.5, N))))
    mean = np.exp(rng.normal(4, 1, N))
    y = (rng.random(N) < p).astype(float)
    hidden = model > 0.3
    shown = np.where(hidden, np.nan, y) if outcome is None else np.full(N, outcome)
    test = pl.DataFrame(
        {"row": np.arange(N), "user_key": np.arange(N), f"y_{pd}": shown, "y_spend": mean},
    ).with_columns(pl.col(f"y_{pd}").fill_nan(None), as_of=pl.lit(datetime(2024, 4, 1, tzinfo=UTC)))
    points, letters = score(model, ScorecardConfig()), grade(model, ScorecardConfig())
    nothing = np.full(N, np.nan)
    decided = decide(points, letters, model, nothing, mean, PolicyConfig()).to_frame()
    predictions = pl.DataFrame({"row": test["row"], "score": points, "grade": letters.tolist()})
    predictions = predictions.with_columns(
        pl.struct(probability=pl.Series(model)).alias(pd),
        spend=pl.struct(amount=pl.Series(mean * 1.2)),
        weights=pl.struct(text=pl.Series(rng.random(N)), social=pl.lit(0.0)),
        decision=pl.struct(*decided.get_columns()),
    )
    oracle = test.select("user_key", "as_of").with_columns(
        task=pl.lit(pd),
        probability=pl.Series(p),
        value=pl.Series(y),
        observed=pl.Series(~hidden),
        without_text=pl.Series(rng.permutation(p)),
    )
    baselines = {pd: {"constant": np.full(N, 0.15)}, "spend": {"constant": np.full(N, 90.0)}}
    return evaluate(
        test,
        predictions,
        Baselines(predictions=baselines, notes=(note,)),
        about=About(
            title=note,
            made_at="2024-05-01 12:00 UTC",
            model_sha256="ab" * 32,
            data_versions={"events": "3", note: note},
            seed=4,
            config=f"lake: x # {note} </pre>",
            currency=currency,
        ),
        tasks={pd: Task(kind="binary"), "spend": Task(kind="amount")},
        roles=Roles(pd=pd, spend="spend"),
        scorecard=ScorecardConfig(),
        policy=PolicyConfig(),
        oracle=oracle,
        withheld=("without_text",),
        training=[
            {"epoch": k, "train_loss": 0.5 / (k + 1), "select_loss": 0.6 - 0.1 * k, "best": k == 1}
            for k in range(3)
        ],
        accounts={"ingest": {"rows_in": 541_909, "accepted": 541_909}, note: {note: 1}},
        resamples=30,
    )


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return make()


@pytest.fixture(scope="module")
def page(evaluation: Evaluation) -> str:
    return render_report(evaluation)


class Outline(HTMLParser):
    """Headings, ids, links to them, drawings; and that every tag that opens also closes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.drawings: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named[a] for a in ("href", "xlink:href", "src") if a in named]
        self.drawings += [named["aria-label"]] if tag == "svg" else []
        assert not any(name.startswith("on") for name in named)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_every_section_is_there_and_reachable(page: str) -> None:
    outline = Outline(page)
    assert tuple(outline.headings) == SECTIONS
    assert len(outline.ids) == len(set(outline.ids))
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    assert len([link for link in outline.links if link.startswith("#")]) >= len(SECTIONS)


def test_every_plot_says_what_it_shows(page: str) -> None:
    drawings = Outline(page).drawings
    starts = (
        "ROC", "Precision-recall", "Calibration", "Scores", "Default rate", "Mean modality",
        "Amounts", "Loss",
    )  # fmt: skip
    assert [next(s for s in starts if d.startswith(s)) for d in drawings] == list(starts)
    assert page.count("<figcaption>") == page.count("<h4>") - 1 == len(drawings)  # one is no plot


def test_numbers_are_those_of_the_evaluation(evaluation: Evaluation, page: str) -> None:
    default = evaluation.tasks["default"]
    assert default.kind == "binary" and default.through_the_door
    for contender in (*default.contenders, *default.through_the_door):
        assert words.number(contender.scores.auc.value) in page
    assert "541,909" in page and "rows in" in page
    assert "ab" * 32 in page


def test_stands_alone(page: str) -> None:
    assert not re.search(r"https?:|@import|\bsrc=|<link|<script|<iframe", page)
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "default-src 'none'" in page


def test_hostile_names_are_text() -> None:
    page = render_report(make(pd=HOSTILE, note=HOSTILE, currency=HOSTILE))
    Outline(page)
    assert "<script" not in page and "</pre> </pre>" not in page
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page and " 49 " not in page  # the data is no template
    assert "</pre>" in page and page.count("</pre>") == 1


@pytest.mark.parametrize("outcome", [0.0, float("nan")])
def test_a_test_role_without_both_outcomes(outcome: float) -> None:
    evaluation = make(outcome=outcome)
    page = render_report(evaluation)
    assert tuple(Outline(page).headings) == SECTIONS
    assert words.NONE in page and "nan" not in page.lower().replace("nance", "")
    assert "ROC curves" not in page
    assert summary_tables(evaluation)


def test_same_evaluation_same_page(evaluation: Evaluation, page: str) -> None:
    again = Evaluation.model_validate_json(evaluation.model_dump_json())
    assert render_report(again) == page


def test_without_training_and_accounts(evaluation: Evaluation) -> None:
    bare = evaluation.model_copy(update={"training": (), "accounts": {}, "notes": ()})
    page = render_report(bare)
    assert tuple(Outline(page).headings) == SECTIONS
    assert "No training curve was passed on." in page and "No account was passed on." in page


def test_written_in_one_step(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(evaluation, tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == render_report(evaluation)
    assert list(path.parent.iterdir()) == [path]

    def full(self: Path, text: str, encoding: str) -> int:
        self.touch()
        raise OSError("no space left on device")

    path.write_text("the old page", encoding="utf-8")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_report(evaluation, path)
    assert path.read_text(encoding="utf-8") == "the old page"
    assert list(path.parent.iterdir()) == [path]


def test_terminal_tables_show_names_as_they_are() -> None:
    evaluation = make(pd="[red]x[/nonsense]", note="[bold]y")
    console = Console(width=160)
    with console.capture() as capture:
        for table in summary_tables(evaluation):
            console.print(table)
    text = capture.get()
    assert "[red]x[/nonsense]" in text and "[bold]y" in text
    assert "share of lift" in text and "541,909" in text
    assert all(name in text for name in ("AAA", "CCC", "model", "constant", "oracle"))


@pytest.mark.parametrize("top", [1e-6, 0.03, 0.4, 1.0, 57.0, 12_345.0])
def test_ticks_are_few_and_inside(top: float) -> None:
    ticks = _square_root_ticks(top)
    assert ticks[0] == 0 and 3 <= len(ticks) <= 6
    assert (np.diff(ticks) > 0).all() and ticks[-1] <= top * (1 + 1e-9)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.number(-0.25, 2), "−0.25"),
        (words.number(None), "—"),
        (words.signed(0.0123), "+0.012"),
        (words.percent(0.1234), "12.3 %"),
        (words.count(541909), "541,909"),
        (words.amount(99.5), "99.50"),
        (words.amount(12345.6), "12,346"),
        (words.amount(None), "—"),
    ],
)
def test_words(shown: str, expected: str) -> None:
    assert shown == expected
