"""The plots of the tuning page, each drawn from the records of a study."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from ray_jobs.report.plots import PER_CENT, legend_above
from ray_jobs.report.svg import BAND, INK, MUTED, SERIES, WIDTH, new_figure, styled, to_svg
from ray_jobs.report.words import number, objective, parameter, percent, value
from tuning.summary import Study, TrialRow

SHOWN = 12  # parameters beside each other
FAR = 6  # times as far from the median as the best: out of sight


def history_plot(study: Study, key: str) -> Markup:
    """Every trial's figure, and the best so far."""
    whole = [t for t in study.trials if t.how == "whole"]
    stopped = [t for t in study.trials if t.how == "stopped"]
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        for rows, mark, colour, label in (
            (stopped, "x", MUTED, "stopped"),
            (whole, "o", SERIES[0], "whole"),
        ):
            x, y = [t.number for t in rows], [t.figures[0] for t in rows]
            axes.plot(x, y, mark, color=colour, markersize=5, label=label)
        x, y = _best_so_far(study, whole)
        axes.step(x, y, where="post", color=SERIES[1], label="best so far")
        axes.set(xlabel="trial", ylabel=objective(study.objectives[0]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(*_sight(study, [t.figures[0] for t in (*whole, *stopped)]))
        legend_above(axes, columns=3)
        best = number(y[-1], 4) if y else "none"
        return to_svg(figure, key, f"Figures of {len(study.trials)} trials; the best: {best}.")


def importance_plot(study: Study, key: str) -> Markup:
    """How much each parameter decides."""
    names = list(study.importances)[:SHOWN]
    shares = [study.importances[name] for name in names]
    at = np.arange(len(names))[::-1]
    with styled():
        figure = new_figure(height=0.9 + 0.33 * max(len(names), 2))
        axes = figure.subplots()
        axes.barh(at, shares, height=0.6, color=SERIES[0], alpha=0.6)
        axes.set_yticks(at, [parameter(name) for name in names])
        axes.xaxis.set_major_formatter(PER_CENT)
        axes.set_xlabel("importance")
        axes.grid(axis="y", visible=False)
        alt = ", ".join(f"{parameter(n)} {percent(s)}" for n, s in zip(names, shares, strict=True))
        return to_svg(figure, key, f"Importance of the parameters: {alt}.")


def coordinates_plot(study: Study, key: str) -> Markup:
    """Every trial as a line through its values; the best tenth stands out."""
    names = [*study.importances, *(n for n in study.parameters if n not in study.importances)]
    rows = sorted(
        (t for t in study.trials if t.figures),
        key=lambda t: t.figures[0],
        reverse=not study.better(1.0, 0.0),
    )
    drawn = [_Axis(n, rows) for n in names if any(n in t.point for t in rows)][:SHOWN]
    best = {t.number for t in rows[-max(1, len(rows) // 10) :]}
    with styled():
        figure = new_figure(height=3.9, width=2.2 * WIDTH)
        axes = figure.subplots()
        for k, axis in enumerate(drawn):
            axes.axvline(k, color=MUTED, linewidth=0.8)
            for place, text in axis.ticks():
                axes.annotate(
                    text,
                    (k, place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    color=MUTED,
                    fontsize=9,
                    va="center",
                )
        for row in rows:
            places = [(k, axis.place(row)) for k, axis in enumerate(drawn)]
            x, y = zip(*[(k, p) for k, p in places if p is not None], strict=True)
            shown = row.number in best
            colour, width = (SERIES[1], 2.2) if shown else (SERIES[0], 0.8)
            axes.plot(x, y, color=colour, linewidth=width, alpha=0.95 if shown else 0.35)
        labels = [parameter(axis.name).replace(" ", "\n") for axis in drawn]
        axes.set_xticks(range(len(drawn)), labels, fontsize=9.5)
        axes.set_yticks([])
        axes.set_xlim(-0.2, len(drawn) - 0.4)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(visible=False)
        return to_svg(figure, key, f"Values of {len(rows)} trials in {len(drawn)} parameters.")


def curves_plot(study: Study, key: str) -> Markup:
    """The first objective of each trial, epoch by epoch."""
    rows = [t for t in study.trials if t.curve]
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        for row in sorted(rows, key=lambda t: t.number == study.winner):
            won, steps = row.number == study.winner, range(1, len(row.curve) + 1)
            colour = SERIES[1] if won else SERIES[0] if row.how == "whole" else MUTED
            style = "-" if row.how == "whole" else (0, (2, 1.5))
            width, label = (2.6, "the winner") if won else (1.0, None)
            axes.plot(steps, row.curve, linestyle=style, color=colour, linewidth=width, label=label)
            if row.how == "stopped":
                axes.plot([steps[-1]], [row.curve[-1]], "x", color=MUTED, markersize=5)
        axes.set(xlabel="epoch", ylabel=objective(study.objectives[0]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(*_sight(study, [figure for t in rows for figure in t.curve]))
        if study.winner is not None:
            legend_above(axes)
        return to_svg(figure, key, f"Learning curves of {len(rows)} trials.")


def noise_plot(study: Study, key: str) -> Markup:
    """Each candidate's figures over seeds, its mean, and what the search had seen."""
    rows = study.candidates
    at = np.arange(len(rows))[::-1]
    with styled():
        figure = new_figure(height=1.2 + 0.5 * max(len(rows), 2))
        axes = figure.subplots()
        for y, row in zip(at, rows, strict=True):
            spread = row.deviation or 0.0
            axes.barh(y, 2 * spread, left=row.mean - spread, height=0.5, color=BAND)
            axes.plot(row.figures, [y] * len(row.figures), "o", color=SERIES[0], markersize=5)
            axes.plot([row.mean], [y], "|", color=INK, markersize=17, markeredgewidth=2)
            if row.searched is not None:
                axes.plot([row.searched], [y], "D", color=SERIES[1], markersize=5.5)
        for mark, colour, label in (
            ("o", SERIES[0], "fresh seed"),
            ("|", INK, "mean"),
            ("D", SERIES[1], "in the search"),
        ):
            axes.plot([], [], mark, color=colour, label=label)
        axes.set_yticks(at, [_name(row.number, row.defaults) for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(objective(study.objectives[0]))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", visible=False)
        legend_above(axes, columns=3)
        alt = "; ".join(f"{_name(r.number, r.defaults)} {number(r.mean, 4)}" for r in rows)
        return to_svg(figure, key, f"Mean over fresh seeds: {alt}.")


def front_plot(study: Study, key: str) -> Markup:
    """Whole trials by the first two objectives; the Pareto front as a line."""
    rows = [t for t in study.trials if t.how == "whole"]
    front = [t for n in study.front for t in rows if t.number == n]
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        axes.plot([t.figures[0] for t in rows], [t.figures[1] for t in rows], "o", color=MUTED)
        x, y = [t.figures[0] for t in front], [t.figures[1] for t in front]
        axes.plot(x, y, "o-", color=SERIES[0], label="Pareto front")
        for row in front:
            spot = (row.figures[0], row.figures[1])
            axes.annotate(str(row.number), spot, xytext=(5, 5), textcoords="offset points")
        axes.set(xlabel=objective(study.objectives[0]), ylabel=objective(study.objectives[1]))
        legend_above(axes)
        return to_svg(figure, key, f"{len(front)} of {len(rows)} trials are on the Pareto front.")


def _name(trial: int, defaults: bool) -> str:
    return f"trial {trial}, defaults" if defaults else f"trial {trial}"


def _best_so_far(study: Study, rows: Sequence[TrialRow]) -> tuple[list[int], list[float]]:
    x: list[int] = []
    y: list[float] = []
    for row in rows:
        if not y or study.better(row.figures[0], y[-1]):
            x, y = [*x, row.number], [*y, row.figures[0]]
    return ([*x, study.trials[-1].number], [*y, y[-1]]) if x else (x, y)


def _sight(study: Study, values: Sequence[float]) -> tuple[float, float]:
    """Limits that leave out what diverged, so that the rest can be told apart."""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    if study.better(low, high):
        high = min(high, middle + FAR * (middle - low)) if middle > low else high
    else:
        low = max(low, middle - FAR * (high - middle)) if middle < high else low
    room = 0.05 * (high - low) + 1e-9
    return float(low - room), float(high + room)


class _Axis:
    """Where on an axis from 0 to 1 the values of a parameter lie: many numbers by size, over
    more than a decade on a logarithmic scale; else in order."""

    def __init__(self, name: str, rows: Sequence[TrialRow]) -> None:
        found = {row.point[name] for row in rows if name in row.point}
        self.name = name
        self.values = sorted(found, key=lambda v: (v is None, isinstance(v, str), v))
        self.numbers = [float(v) for v in self.values if isinstance(v, int | float)]
        self.continuous = len(self.values) > 6 and len(self.numbers) == len(self.values)
        self.log = self.continuous and 0 < 10 * self.numbers[0] < self.numbers[-1]

    def place(self, row: TrialRow) -> float | None:
        """A trial's place; None where the parameter had no effect."""
        if self.name not in row.point:
            return None
        value = row.point[self.name]
        if not self.continuous:
            return (self.values.index(value) + 0.5) / len(self.values)
        assert isinstance(value, int | float)
        low, high, at = np.array([self.numbers[0], self.numbers[-1], value])
        if self.log:
            low, high, at = np.log([low, high, at])
        return float((at - low) / (high - low))

    def ticks(self) -> list[tuple[float, str]]:
        """The ends, or all values."""
        if self.continuous:
            return [(0.0, f"{self.numbers[0]:.2g}"), (1.0, f"{self.numbers[-1]:.2g}")]
        return [((k + 0.5) / len(self.values), value(v)) for k, v in enumerate(self.values)]
