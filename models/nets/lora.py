"""Low-rank adapters of an encoder: added to train it, folded into its weights to keep it.

Source: Hu et al. 2021, "LoRA: Low-rank adaptation of large language models".
"""

from typing import TYPE_CHECKING

from models.data.schema import UserError
from models.nets.config import LoraConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
