"""Low-rank adapters of an encoder: added to train it, folded into its weights to keep it.

Source: Hu et al. 2021, "LoRA: Low-rank adaptation of large language models".
"""

from typing import TYPE_CHECKING

from pydantic import Field

from models.data.schema import UserError
from models.data.strict import Strict

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraConfig(Strict):
    """A weight W of the `targets` learns W + alpha / rank · B A, with B and A of `rank`.

    `targets`: names of the linear layers in the encoder, as they end.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(default=("query", "value"), min_length=1)


def add_adapters(encoder: "PreTrainedModel", config: LoraConfig) -> None:
    """Put adapters on the targets and leave nothing else trainable; outputs do not change yet.

    Raises UserError where the encoder has no such layers.
    """
    import peft  # not needed to score

    try:
        peft.inject_adapter_in_model(
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number will do
                lora_dropout=config.dropout,
                target_modules=list(config.targets),
            ),
            encoder,
        )
    except ValueError as error:
        line = str(error).splitlines()[0]
        raise UserError(f"network.text.lora.targets {list(config.targets)}: {line}") from error


def merge_adapters(encoder: "PreTrainedModel") -> None:
    """Fold the adapters into the weights they adapt: a plain encoder with the same outputs."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(encoder.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            encoder.set_submodule(name, module.get_base_layer())
