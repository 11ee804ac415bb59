"""Numbers as people read them; a dash where there is none."""

from typing import Literal

from models.scoring.bootstrap import MetricName
from models.scoring.curves import Value
from tuning.config import Objective

Form = Literal["number", "signed", "percent", "amount"]
NONE = "—"
MINUS = "−"
METRICS: dict[MetricName, str] = {
    "auc": "AUC",
    "ks": "KS",
    "pr_auc": "PR-AUC",
    "brier": "Brier",
    "log_loss": "log-loss",
    "rmse": "RMSE",
    "mae": "MAE",
    "spearman": "Spearman",
    "calibration_ratio": "actual / expected",
}

OBJECTIVES: dict[Objective, str] = {
    "log_loss": "log-loss",
    "auc": "AUC",
    "cost": "ms a scored user",
    "fairness_gap": "fairness gap",
}


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits: 0.812."""
    return NONE if value is None else _minus(f"{value:.{digits}f}")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign: +0.012."""
    return NONE if value is None else _minus(f"{value:+.{digits}f}")


def count(value: int | None) -> str:
    """Thousands apart: 541,909."""
    return NONE if value is None else _minus(f"{value:,}")


def percent(value: float | None, digits: int = 1) -> str:
    """A share: 12.3 %."""
    return NONE if value is None else _minus(f"{100 * value:.{digits}f} %")


def amount(value: float | None) -> str:
    """An amount: whole from 100 on, else with two digits."""
    if value is None:
        return NONE
    return _minus(f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}")


def span(value: Value, form: Form = "number", digits: int = 3) -> str:
    """An interval without its middle: 0.795–0.829; empty where there is none."""
    if value.low is None or value.high is None:
        return ""
    if form == "signed":
        return f"{signed(value.low, digits)} to {signed(value.high, digits)}"
    if form == "percent":
        return f"{number(100 * value.low, 1)}–{percent(value.high)}"
    if form == "amount":
        return f"{amount(value.low)} to {amount(value.high)}"
    dash = "–" if value.low >= 0 else " to "
    return f"{number(value.low, digits)}{dash}{number(value.high, digits)}"


def label(name: str) -> str:
    """A name of the program as words: text_behaviour → text behaviour."""
    return name.replace("_", " ")


def objective(name: Objective) -> str:
    """An objective of a search as it is written in print."""
    return OBJECTIVES[name]


def parameter(path: str) -> str:
    """A searched key as words: network.text.trainable_layers → text trainable layers."""
    return label(path.removeprefix("network.").removeprefix("train.loop.").replace(".", " "))


def value(given: bool | int | float | str | None) -> str:
    """A parameter's value: 0.00123, 64, cnn; a dash where it had no effect."""
    return NONE if given is None else f"{given:.3g}" if isinstance(given, float) else str(given)


def metric(name: MetricName) -> str:
    """A metric as it is written in print."""
    return METRICS[name]


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
