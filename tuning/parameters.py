"""What a parameter of a search is, and those that are searched unless a configuration says
otherwise. Imports no Optuna: every process of a job reads the configuration, and few search.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from models.data.strict import Strict

Value = bool | int | float | str | None
EACH = "*"  # in a path: the name of every task that the caller gives


class _Parameter(Strict):
    """`when`: other keys → the values of theirs with which this one has an effect. Where it has
    none, its key stays as configured or, if `unset`, is null."""

    when: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    unset: bool = False


class Range(_Parameter):
    """From `low` to `high`, both included; whole numbers, in steps, where the key takes these."""

    low: float
    high: float
    log: bool = False
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _not_empty(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"an empty range: low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a range with log: true starts above 0, not at {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("a range has a step or log: true, not both")
        return self


class Choice(_Parameter):
    """One of several values."""

    values: tuple[Value, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _list(cls, given: Any) -> Any:
        return {"values": given} if isinstance(given, list | tuple) else given


def _kind(given: Any) -> str:
    """Which of the two YAML means, so that a fault is told of that one."""
    listed = isinstance(given, list | tuple | Choice)
    return "values" if listed or (isinstance(given, dict) and "values" in given) else "range"


Parameter = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choice, Tag("values")], Discriminator(_kind)
]

SPACE: Mapping[str, Parameter] = MappingProxyType(
    {
        "network.width": Choice(values=(32, 64, 96, 128)),
        "network.dropout": Range(low=0.0, high=0.5),
        "network.modality_dropout": Range(low=0.0, high=0.3),
        "network.behaviour.encoder": Choice(values=("transformer", "cnn", "gru", "lstm")),
        "network.behaviour.layers": Range(low=1, high=4),
        "network.behaviour.heads": Choice(
            values=(2, 4, 8), when={"network.behaviour.encoder": ("transformer",)}
        ),
        "network.tabular.numbers": Choice(values=("linear", "piecewise")),
        "network.tabular.cross_layers": Range(low=0, high=3),
        "network.fusion.kind": Choice(values=("attention", "gated", "concat")),
        "network.text.lora.rank": Choice(values=(None, 4, 8, 16)),
        "network.text.trainable_layers": Range(
            low=1, high=4, when={"network.text.lora.rank": (None,)}, unset=True
        ),
        f"network.loss.binary.{EACH}.focal": Range(low=0.0, high=2.0),
        f"network.loss.binary.{EACH}.positive_weight": Choice(values=(1.0, "balanced")),
        "features.max_events": Choice(values=(32, 64, 128)),
        "features.max_texts": Choice(values=(1, 3, 6)),
        "train.loop.learning_rate": Range(low=3e-4, high=1e-2, log=True),
        "train.loop.text_learning_rate": Range(low=2e-5, high=5e-4, log=True),
        "train.loop.frozen_epochs": Range(low=0, high=3),
        "train.loop.weight_decay": Range(low=1e-3, high=0.3, log=True),
        "train.loop.alone_weight": Range(low=0.0, high=1.0),
        "train.loop.batch_rows": Choice(values=(32, 64, 128)),
    }
)
