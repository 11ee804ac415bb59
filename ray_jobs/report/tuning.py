"""A study as one self-contained HTML page: `tuning_report.html`."""

from pathlib import Path

from markupsafe import Markup

from ray_jobs.report import tuning_plots as plots
from ray_jobs.report.build import template, write_page
from tuning.summary import Study


def write_tuning_report(study: Study, path: str | Path) -> Path:
    """Write the page to a local path in one step."""
    return write_page(render_tuning_report(study), Path(path))


def render_tuning_report(study: Study) -> str:
    """The page as text."""
    return template("tuning_report.html.j2").render(
        s=study,
        trials={trial.number: trial for trial in study.trials},
        plots=_plots(study),
    )


def _plots(study: Study) -> dict[str, Markup]:
    drawn: dict[str, Markup] = {}
    if any(trial.figures for trial in study.trials):
        drawn["history"] = plots.history_plot(study, "history")
        drawn["curves"] = plots.curves_plot(study, "curves")
        if study.parameters:  # none: a configuration as it is, cross-validated
            drawn["coordinates"] = plots.coordinates_plot(study, "coordinates")
    if study.importances:
        drawn["importances"] = plots.importance_plot(study, "importances")
    if study.candidates:
        drawn["noise"] = plots.noise_plot(study, "noise")
    if study.front:
        drawn["front"] = plots.front_plot(study, "front")
    return drawn
