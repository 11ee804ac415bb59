"""The tuning page: whole, standing alone, and no name in it is markup."""

import re
from html.parser import HTMLParser

import pytest

from ray_jobs.report.tuning import render_tuning_report, write_tuning_report
from tuning.summary import Candidate, Gain, Study, TrialRow

HOSTILE = "<script>alert(1)</script>"
RATE, WIDTH = "train.loop.learning_rate", "network.width"


def study(**keys: object) -> Study:
    """Ten trials; every third stopped, one failed."""
    rows = tuple(
        TrialRow(
            number=k,
            how="failed" if k == 5 else "stopped" if k % 3 == 1 else "whole",
            point={RATE: 0.001 * (k + 1) ** 2, WIDTH: 32 * (1 + k % 3)},
            figures=() if k == 5 else (0.4 - 0.01 * k, 2.0 + k),
            epochs=3,
            seconds=4.2,
            curve=(0.5, 0.45, 0.4 - 0.01 * k),
        )
        for k in range(10)
    )
    tree = {
        "name": "study",
        "objectives": ("log_loss",),
        "trials": rows,
        "parameters": (RATE, WIDTH),
        "defaults": {RATE: 0.003, WIDTH: 64},
        "importances": {RATE: 0.9, WIDTH: 0.1},
        "epochs": 30,
        "epochs_unstopped": 60,
        "winner": 9,
        "candidates": (
            Candidate(number=9, defaults=False, searched=0.31, figures=(0.3, 0.32), mean=0.31,
                      deviation=0.01),
            Candidate(number=0, defaults=True, searched=None, figures=(0.4, 0.41), mean=0.405,
                      deviation=None),
        ),
        "gain": Gain(mean=0.095, error=0.002),
    } | keys  # fmt: skip
    return Study.model_validate(tree)


class Outline(HTMLParser):
    """Headings and drawings; ids are unique."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.drawings: list[str] = []
        self.feed(page)
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.ids += [named["id"]] if "id" in named else []
        self.drawings += [named["aria-label"].split()[0]] if tag == "svg" else []


def test_every_figure_is_drawn_and_every_trial_listed() -> None:
    page = render_tuning_report(study())
    drawings = Outline(page).drawings
    assert drawings == ["Mean", "Figures", "Learning", "Importance", "Values"]
    assert page.count('<th scope="row">') == 10 + 2 + 2  # trials, candidates, parameters
    assert "+0.0950" in page and "0.0020" in page and "50 % of 60" in page
    assert "train --from-study study" in page


def test_a_pareto_front_takes_the_place_of_a_winner() -> None:
    several = study(
        objectives=("log_loss", "cost"), winner=None, front=(9, 3), candidates=(), gain=None
    )
    page = render_tuning_report(several)
    assert "--trial 9" in page and "2 of 6 trials are on the Pareto front" in page


def test_stands_alone_and_escapes() -> None:
    page = render_tuning_report(
        study(name=HOSTILE, parameters=(HOSTILE,), defaults={HOSTILE: HOSTILE})
    )
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"https?:|@import|\bsrc=|<link|<iframe", page)


@pytest.mark.parametrize("trials", [(), study().trials[5:6], study().trials[:1]])
def test_a_study_of_hardly_anything(trials: tuple[TrialRow, ...]) -> None:
    bare = study(trials=trials, importances={}, winner=None, candidates=(), gain=None)
    page = render_tuning_report(bare)
    assert "No trial has trained to its end yet." in page and "nan" not in page


def test_a_configuration_as_it_is_has_no_parameters_to_draw() -> None:
    one = study().trials[0].model_copy(update={"point": {}})
    page = render_tuning_report(
        study(trials=(one,), parameters=(), defaults={}, importances={}, winner=0, candidates=())
    )
    assert Outline(page).drawings == ["Figures", "Learning"]


def test_written_in_one_step(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = write_tuning_report(study(), tmp_path / "a" / "tuning_report.html")
    assert path.read_text(encoding="utf-8") == render_tuning_report(study())
    assert list(path.parent.iterdir()) == [path]
