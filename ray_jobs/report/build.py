"""An evaluation as one self-contained HTML page: `report.html`."""

import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from models.scoring.comparison import AmountTask, BinaryTask
from models.scoring.evaluation import Evaluation
from ray_jobs.report import plots, words

FORMS = (
    "number", "signed", "count", "percent", "amount", "span", "label", "metric", "objective",
    "parameter", "value",
)  # fmt: skip


def write_report(evaluation: Evaluation, path: str | Path) -> Path:
    """Write the page to a local path in one step: a reader sees the old page or the new one."""
    return write_page(render_report(evaluation), Path(path))


def write_page(page: str, target: Path) -> Path:
    """Write a page in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def template(name: str) -> Template:
    """A template of this folder. Whatever comes from data or configuration is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for form in FORMS:
        environment.filters[form] = getattr(words, form)
    return environment.get_template(name)


def render_report(evaluation: Evaluation) -> str:
    """The page as text."""
    return template("report.html.j2").render(
        e=evaluation,
        binary={k: t for k, t in evaluation.tasks.items() if isinstance(t, BinaryTask)},
        amounts={k: t for k, t in evaluation.tasks.items() if isinstance(t, AmountTask)},
        pd=evaluation.tasks[evaluation.pd_task],
        plots=_plots(evaluation),
    )


def _plots(evaluation: Evaluation) -> dict[str, Markup]:
    """Every plot by its key: the kind, and for a task its place in the list of tasks."""
    drawn: dict[str, Markup] = {
        "scores": plots.score_plot(evaluation.scores, "scores"),
        "grades": plots.grade_plot(evaluation.grades, "grades"),
        "weights": plots.weight_plot(evaluation.weights, "weights"),
    }
    if evaluation.training:
        drawn["training"] = plots.training_plot(evaluation.training, "training")
    for place, task in enumerate(evaluation.tasks.values()):
        if not task.contenders:
            continue
        if isinstance(task, AmountTask):
            key = f"amount-{place}"
            drawn[key] = plots.amount_plot(task.deciles, evaluation.about.currency, key)
            continue
        if task.contenders[0].roc.x:
            drawn[f"roc-{place}"] = plots.roc_plot(task.contenders, f"roc-{place}")
            drawn[f"pr-{place}"] = plots.pr_plot(task.contenders, f"pr-{place}")
        key = f"calibration-{place}"
        drawn[key] = plots.calibration_plot(task.calibration, key)
    return drawn
