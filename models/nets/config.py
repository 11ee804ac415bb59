"""What can be configured of a network and its training. Imports no torch: every process of a job
reads the configuration, and few train.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.data.strict import Strict

MINILM = "minilm"  # sentence-transformers/all-MiniLM-L6-v2, as shipped by a PyPI wheel
ARCHITECTURE = 2  # raised when a network comes to have other parameters
Amounts = Literal["linear", "piecewise"]
Precision = Literal["bf16", "fp32"]  # of a training
ScoringPrecision = Literal["fp32", "int8"]


class LoraConfig(Strict):
    """A weight W of the `targets` learns W + alpha / rank · B A, with B and A of `rank`.

    `targets`: names of the linear layers in the encoder, as they end.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(default=("query", "value"), min_length=1)


class TextConfig(Strict):
    """`encoder`: "minilm", a local folder, or a Hugging Face name of a BERT-family encoder.

    Of its layers the first `layers` are used, or all (None): the last ones of an encoder of
    sentences say what a text is about, and drop how it says it. Of those used the last
    `trainable_layers` are fine-tuned, none (0: it stays as it came), or all and the embeddings
    (None). With `lora`, low-rank adapters beside its weights are, instead. `words`: the width of
    token embeddings that learn beside the encoder from the labels alone, read a few tokens at a
    time; None for none.
    """

    encoder: str = MINILM
    layers: int | None = Field(default=None, ge=1)
    trainable_layers: int | None = Field(default=None, ge=0)
    lora: LoraConfig | None = None
    words: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_way_to_learn(self) -> "TextConfig":
        if self.lora is not None and self.trainable_layers is not None:
            raise ValueError("trainable_layers and lora: expected one of them, not both")
        return self


class BehaviourConfig(Strict):
    """How events are embedded and encoded. `heads` are those of the Transformer's attention;
    `pretrained` is a folder to start from.
    """

    encoder: Literal["transformer", "cnn", "gru", "lstm"] = "cnn"
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    amounts: Amounts = "linear"
    pretrained: str | None = None

    def check(self, width: int) -> None:
        """Raise ValueError where the encoder cannot have this width."""
        if self.encoder == "transformer" and width % self.heads:
            raise ValueError(f"width {width} is no multiple of {self.heads} heads")
        if self.encoder in {"gru", "lstm"} and width % 2:
            raise ValueError(f"width {width} is odd; a {self.encoder} of two directions halves it")


class TabularConfig(Strict):
    """How numbers enter the tower, and how many cross layers it has beside its other paths.

    It sees the `keep` columns that trees of the fit role gain most by; all of them for None, and
    where there are no more than that.
    """

    numbers: Literal["linear", "piecewise"] = "linear"
    cross_layers: int = Field(default=0, ge=0)
    keep: int | None = Field(default=None, ge=1)


class FusionConfig(Strict):
    """How the modalities' vectors become one."""

    kind: Literal["attention", "gated", "concat"] = "attention"


class BinaryLoss(Strict):
    """The loss of a binary task; by default the cross-entropy.

    `positive_weight`: of a positive row against a negative one; "balanced" makes both classes
    weigh the same. `focal`: the exponent γ by which rows that are already right count less.
    `smoothing`: the share of a label that goes evenly to both classes. The last two pull
    probabilities to the middle, which the calibration puts right.
    """

    positive_weight: Annotated[float, Field(gt=0)] | Literal["balanced"] = 1.0
    focal: float = Field(default=0.0, ge=0)
    smoothing: float = Field(default=0.0, ge=0, lt=1)

    def weight(self, rate: float) -> float:
        """Of a positive row, where that share of the rows is positive."""
        if self.positive_weight == "balanced":
            return (1 - rate) / rate
        return self.positive_weight


class LossConfig(Strict):
    """How training weighs tasks, and losses of binary tasks by their names.

    `task_weights`: "fixed" are those of the tasks; "learned" multiplies them with the inverse of
    each task's own uncertainty.
    """

    task_weights: Literal["fixed", "learned"] = "fixed"
    binary: dict[str, BinaryLoss] = Field(default_factory=dict)


class NetworkConfig(Strict):
    """The shape of the network and what it is trained for. `width` is its one main dial.

    `modality_dropout`: the chance of each modality of a row to be withheld in a training step, so
    that the others learn to do without it.
    """

    width: int = Field(default=64, ge=8)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    modality_dropout: float = Field(default=0.0, ge=0, lt=1)
    text: TextConfig = TextConfig()
    behaviour: BehaviourConfig = BehaviourConfig()
    tabular: TabularConfig = TabularConfig()
    fusion: FusionConfig = FusionConfig()
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _width_suits_the_encoder(self) -> "NetworkConfig":
        self.behaviour.check(self.width)
        return self


class FitConfig(Strict):
    """How long and how fast. `batch_rows` is per rank; learning rates are peak values.

    Epochs with a frozen encoder cost little, as each text is encoded once; the encoder is then
    tuned for towers that already read it. Source: Kumar et al. 2022, "Fine-tuning can distort
    pretrained features and underperform out-of-distribution".
    """

    epochs: int = Field(default=3, ge=1)
    frozen_epochs: int = Field(default=0, ge=0)  # the first ones, with the text encoder as it is
    batch_rows: int = Field(default=64, ge=1)
    accumulate: int = Field(default=1, ge=1)  # batches to a step of the optimiser
    learning_rate: float = Field(default=1e-3, gt=0)
    text_learning_rate: float = Field(default=1e-4, gt=0)
    text_layer_decay: float = Field(default=1.0, gt=0, le=1)  # of that rate, a layer down
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of all steps
    alone_weight: float = Field(default=0.5, ge=0)  # of each modality's own loss
    clip_norm: float = Field(default=10.0, gt=0)
    average_decay: float = Field(default=0.99, ge=0, lt=1)  # a step; of the weights that are kept
    patience: int = Field(default=2, ge=1)  # epochs without a better select loss
    precision: Literal["auto", Precision] = "auto"


class PretrainLoop(Strict):
    """How long and how fast; the rate is the peak of a cosine with a warm-up. By itself `precision`
    hangs on the machine, so that another may not come to the same bits."""

    epochs: int = Field(default=3, ge=1)
    precision: Literal["auto", Precision] = "auto"
    batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)


class NewEncoder(Strict):
    """A BERT from nothing, with a WordPiece tokenizer of `vocabulary` words for the texts."""

    vocabulary: int = Field(default=8000, ge=100)
    layers: int = Field(default=4, ge=1)
    width: int = Field(default=256, ge=8)
    heads: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "NewEncoder":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        return self


class TextPretraining(PretrainLoop):
    """Going on from `encoder` ("minilm" if None), named as in `network.text`, or from a `new` one.

    `objective`: to fill in masked words, or to find the other half of a text among those of a
    batch. `masked` is the share of the tokens for the first. `batch` counts texts; of more than
    `max_texts` distinct ones a sample is drawn.
    """

    encoder: str | None = None
    new: NewEncoder | None = None
    objective: Literal["masked", "halves"] = "masked"
    masked: float = Field(default=0.15, gt=0, lt=1)
    max_texts: int = Field(default=200_000, ge=1)

    @model_validator(mode="after")
    def _one_start(self) -> "TextPretraining":
        if self.encoder is not None and self.new is not None:
            raise ValueError("encoder and new: expected one of them, not both")
        if self.objective == "halves" and self.batch < 2:
            raise ValueError("batch: 1: expected 2 or more, so that halves are told from others")
        return self

    @property
    def start(self) -> str | NewEncoder:
        """The encoder to go on from, or the sizes of a new one."""
        return self.new or self.encoder or MINILM


class EventPretraining(PretrainLoop):
    """`objective`: to tell a user's next events, or which slices of events are of one user.

    `batch` counts users; of more than `max_users` a sample is drawn.
    """

    objective: Literal["next", "slices"] = "next"
    epochs: int = Field(default=10, ge=1)
    horizon: int = Field(default=8, ge=1)  # next events that are told
    max_users: int = Field(default=100_000, ge=1)

    @model_validator(mode="after")
    def _others(self) -> "EventPretraining":
        if self.objective == "slices" and self.batch < 2:
            raise ValueError("batch: 1: expected 2 or more, so that a user is told from others")
        return self
