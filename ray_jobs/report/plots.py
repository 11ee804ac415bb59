"""The plots of the report, each drawn from the records of an evaluation.

A function returns inline SVG; titles and captions stand in the page. `key` is unique on the page.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from models.scoring.comparison import MODEL, ORACLE, BinaryContender
from models.scoring.curves import Bin, Curve, Value
from models.scoring.evaluation import Epoch
from models.scoring.portfolio import GradeRow, Histogram, ModalityRow
from models.scoring.stack import NETWORK
from ray_jobs.report.svg import BAND, INK, MUTED, SERIES, new_figure, styled, to_svg
from ray_jobs.report.words import amount, number, percent

FloatArray = NDArray[np.float64]
Corner = Literal["lower right", "upper right"]
# Told apart without colour too; the model is the one solid line.
LOOKS: dict[str, tuple[str, object, float]] = {
    MODEL: (SERIES[0], "-", 2.6),
    NETWORK: (SERIES[5], (0, (8, 1.5)), 1.7),
    "lightgbm": (SERIES[1], (0, (6, 2)), 1.7),
    "tfidf": (SERIES[2], (0, (5, 1.5, 1, 1.5)), 1.7),
    "constant": (SERIES[3], (0, (2, 2)), 1.5),
    ORACLE: (SERIES[4], (0, (1, 1.4)), 1.9),
}
PER_CENT = PercentFormatter(1.0, decimals=0)


def roc_plot(contenders: Sequence[BinaryContender], key: str) -> Markup:
    """True against false positive rate, one line a contender."""
    aucs = ", ".join(f"{c.name} {number(c.scores.auc.value, 3)}" for c in contenders)
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        _curves(axes, [(c.name, c.scores.auc, c.roc) for c in contenders], "lower right")
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        _unit_square(axes)
        return to_svg(figure, key, f"ROC curves. Area under the curve: {aucs}.")


def pr_plot(contenders: Sequence[BinaryContender], key: str) -> Markup:
    """Precision against recall, one line a contender; a guess has the base rate as precision."""
    base = contenders[0].scores.base_rate
    areas = ", ".join(f"{c.name} {number(c.scores.pr_auc.value, 3)}" for c in contenders)
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        axes.axhline(base, color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        corner: Corner = "upper right" if base < 0.5 else "lower right"
        _curves(axes, [(c.name, c.scores.pr_auc, c.pr) for c in contenders], corner)
        axes.set(xlabel="recall", ylabel="precision")
        _unit_square(axes)
        alt = f"Precision-recall curves; base rate {percent(base)}. Average precision: {areas}."
        return to_svg(figure, key, alt)


def calibration_plot(bins: Sequence[Bin], key: str) -> Markup:
    """Observed rate against predicted probability by tenths, on square-root axes."""
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        known = [b for b in bins if b.expected is not None]
        axes.fill_between(
            [b.predicted for b in known],
            [_float(b.expected, "low") for b in known],
            [_float(b.expected, "high") for b in known],
            color=BAND,
            linewidth=0,
            label="if calibrated",
        )
        _observed(axes, bins, "observed")
        axes.set(xlabel="predicted probability", ylabel="observed rate")
        _square_root(axes, bins, lambda value: f"{100 * value:.3g} %")
        alt = "Calibration by tenths, predicted against observed: " + "; ".join(
            f"{percent(b.predicted)} against {percent(b.observed.value)}" for b in bins
        )
        return to_svg(figure, key, alt + ".")


def amount_plot(bins: Sequence[Bin], unit: str, key: str) -> Markup:
    """Mean observed against mean predicted amount by tenths, on square-root axes."""
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        _observed(axes, bins, "observed")
        suffix = f", {unit}" if unit else ""
        axes.set(xlabel=f"mean predicted{suffix}", ylabel=f"mean observed{suffix}")
        _square_root(axes, bins, lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.3g}")
        alt = "Amounts by tenths, predicted against observed: " + "; ".join(
            f"{amount(b.predicted)} against {amount(b.observed.value)}" for b in bins
        )
        return to_svg(figure, key, alt + ".")


def score_plot(scores: Histogram, key: str) -> Markup:
    """The share of each outcome's users by score."""
    outcomes = (
        ("no", scores.negative, SERIES[0], "-"),
        ("yes", scores.positive, SERIES[1], (0, (5, 1.5))),
        ("unknown", scores.unknown, SERIES[3], (0, (1, 1.4))),
    )
    shown = [(name, np.array(n), c, line) for name, n, c, line in outcomes if sum(n)]
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        for name, counts, colour, line in shown:
            share = counts / counts.sum()
            label = f"{name} ({counts.sum():,})"
            axes.stairs(share, scores.edges, color=colour, fill=True, alpha=0.16)
            axes.stairs(share, scores.edges, color=colour, linewidth=2, linestyle=line, label=label)
        axes.set(xlabel="credit score (0 to 100)", ylabel="share of that outcome's users")
        axes.set_xlim(0, 100)
        axes.yaxis.set_major_formatter(PER_CENT)
        if shown:
            legend_above(axes, columns=3)
        middle = np.array(scores.edges[:-1]) + np.diff(scores.edges) / 2
        means = ", ".join(f"{n} {np.average(middle, weights=c):.0f}" for n, c, _, _ in shown)
        return to_svg(figure, key, f"Scores by outcome (yes, no, unknown). Mean score: {means}.")


def grade_plot(grades: Sequence[GradeRow], key: str) -> Markup:
    """Observed default rate and mean PD of each grade."""
    at = np.arange(len(grades))
    known = [(k, g.group.default_rate) for k, g in enumerate(grades) if g.group.known]
    predicted = [(k, g.group.mean_pd) for k, g in enumerate(grades) if g.group.mean_pd is not None]
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        _points(axes, known, "observed")
        axes.plot(*_columns(predicted), "_", color=INK, markersize=15, label="mean PD")
        axes.set_xticks(at, [g.grade for g in grades])
        axes.set(xlabel="grade", ylabel="default rate")
        axes.yaxis.set_major_formatter(PER_CENT)
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        legend_above(axes)
        alt = "Default rate by grade: " + ", ".join(
            f"{grades[k].grade} {percent(rate.value)}" for k, rate in known
        )
        return to_svg(figure, key, alt + ".")


def weight_plot(weights: Sequence[ModalityRow], key: str) -> Markup:
    """Mean modality weight of each modality, and the middle 80 % of the users who have it."""
    names = [w.modality for w in weights]
    at = np.arange(len(names))[::-1]
    with styled():
        figure = new_figure(height=0.9 + 0.5 * max(len(names), 2))
        axes = figure.subplots()
        axes.barh(at, [w.mean for w in weights], height=0.55, color=SERIES[0], alpha=0.55)
        spread = [(y, w) for y, w in zip(at, weights, strict=True) if w.median is not None]
        for y, row in spread:
            axes.plot([row.p10 or 0.0, row.p90 or 0.0], [y, y], color=INK, linewidth=1.4)
            axes.plot([row.median or 0.0], [y], "o", color=INK, markersize=4.5)
        axes.set_yticks(at, names)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PER_CENT)
        axes.set_xlabel("modality weight")
        axes.grid(axis="y", visible=False)
        alt = "Mean modality weight: " + ", ".join(
            f"{w.modality} {percent(w.mean)}" for w in weights
        )
        return to_svg(figure, key, alt + ".")


def training_plot(epochs: Sequence[Epoch], key: str) -> Markup:
    """Loss of the fit and of the select role by epoch; the epoch that was kept is marked."""
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        for name, losses, colour, line in (
            ("fit role", [e.train_loss for e in epochs], SERIES[1], (0, (5, 1.5))),
            ("select role", [e.select_loss for e in epochs], SERIES[0], "-"),
        ):
            known = [(e.epoch + 1, x) for e, x in zip(epochs, losses, strict=True) if x is not None]
            axes.plot(*_columns(known), "o", linestyle=line, color=colour, markersize=4, label=name)
        kept = [(e.epoch + 1, e.select_loss) for e in epochs if e.best and e.select_loss][-1:]
        axes.plot(
            *_columns(kept), "o", color=SERIES[0], markersize=11, fillstyle="none", label="kept"
        )
        axes.set(xlabel="epoch", ylabel="loss (weighted over tasks)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(axes)
        last = epochs[-1]
        alt = f"Loss over {len(epochs)} epochs; the last: fit {number(last.train_loss, 4)}, "
        return to_svg(figure, key, alt + f"select {number(last.select_loss, 4)}.")


def _curves(axes: Axes, curves: Sequence[tuple[str, Value, Curve]], corner: Corner) -> None:
    for name, area, curve in curves:
        if not curve.x:
            continue
        colour, line, width = LOOKS.get(name, (SERIES[5], "-", 1.7))
        axes.plot(
            curve.x,
            curve.y,
            color=colour,
            linestyle=line,
            linewidth=width,
            label=f"{name} {number(area.value, 3)}",
            zorder=3 if name == MODEL else 2,
        )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=corner, handlelength=2.6)


def legend_above(axes: Axes, columns: int = 2) -> None:
    """Where it hides nothing, whatever the data."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        borderpad=0.1,
        borderaxespad=0.3,
        columnspacing=1.2,
        handletextpad=0.5,
        handlelength=1.7,
    )


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    axes.xaxis.set_major_formatter(PER_CENT)
    axes.yaxis.set_major_formatter(PER_CENT)


def _observed(axes: Axes, bins: Sequence[Bin], label: str) -> None:
    """Points with intervals over the diagonal."""
    _points(axes, [(b.predicted, b.observed) for b in bins], label)


def _points(axes: Axes, points: Sequence[tuple[float, Value]], label: str) -> None:
    shown = [(x, _float(v, "value"), _float(v, "low"), _float(v, "high")) for x, v in points]
    x, y, low, high = _columns(shown, 4)
    axes.errorbar(
        x,
        y,
        yerr=np.nan_to_num(np.stack([y - low, high - y])).clip(0),
        fmt="o",
        color=SERIES[0],
        markersize=5,
        elinewidth=1.3,
        capsize=2.5,
        label=label,
    )


def _square_root(axes: Axes, bins: Sequence[Bin], label: Callable[[float], str]) -> None:
    """Both axes alike, the diagonal, and room for small values beside large ones."""
    values = [b.predicted for b in bins]
    values += [_float(b.observed, end) for b in bins for end in ("value", "high")]
    top = float(np.nanmax([*values, 1e-9])) * 1.05
    axes.plot([0, top], [0, top], color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
    axes.set_xscale("function", functions=(_root, np.square))
    axes.set_yscale("function", functions=(_root, np.square))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(_square_root_ticks(top))
        axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axes.set(xlim=(0, top), ylim=(0, top))
    legend_above(axes)


def _root(values: FloatArray) -> FloatArray:
    return np.sqrt(np.maximum(values, 0.0))


def _square_root_ticks(top: float) -> list[float]:
    """0 and up to five round values, about evenly spaced on a square-root axis."""
    wanted = top * (np.arange(1, 6) / 5) ** 2
    unit = 10.0 ** np.floor(np.log10(wanted))
    steps = np.array([1.0, 2.0, 3.0, 5.0])
    below = np.searchsorted(steps, wanted / unit + 1e-9) - 1
    return [0.0, *np.unique(steps[np.maximum(below, 0)] * unit).tolist()]


def _float(value: Value | None, end: Literal["value", "low", "high"]) -> float:
    found = None if value is None else getattr(value, end)
    return float("nan") if found is None else float(found)


def _columns(rows: Sequence[tuple[float | None, ...]], width: int = 2) -> list[FloatArray]:
    """The columns of rows of numbers; `width` empty ones where there are no rows."""
    return list(np.array(rows, dtype=np.float64).reshape(len(rows), width).T)
