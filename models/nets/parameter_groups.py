"""The groups of parameters that the optimiser gives rates of their own."""

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER = re.compile(r"\blayers?\.(\d+)\.")  # in the names of an encoder's parameters


def parameter_groups(
    network: nn.Module,
    encoder: "PreTrainedModel",
    *,
    rate: float,
    encoder_rate: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups of the parameters that learn, `encoder` being a part of the network.

    The encoder's last layer learns at its rate, each layer below at `layer_decay` times that of
    the one above; the rest of the network at `rate`. Vectors do not decay: norms, paces of fading,
    and biases but for those with a row a modality (`AttentionFusion.bias_MD`, `Alone.bias_MJ`).
    Source of the decay by layer: Howard and Ruder 2018, "Universal language model fine-tuning for
    text classification"; Sun et al. 2019, "How to fine-tune BERT for text classification?".
    """
    rates = {
        id(p): encoder_rate * layer_decay ** _below_top(name, encoder.config.num_hidden_layers)
        for name, p in encoder.named_parameters()
    }
    groups = defaultdict(list)
    for parameter in network.parameters():
        if parameter.requires_grad:
            own = id(parameter) in rates
            decay = weight_decay if parameter.dim() > 1 else 0.0
            groups[own, rates.get(id(parameter), rate), decay].append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay, "encoder": own}
        for (own, lr, decay), parameters in groups.items()
    ]


def _below_top(name: str, layers: int) -> int:
    """How many layers lie above the one that a parameter is of; all of them above embeddings."""
    found = LAYER.search(name)
    if found is not None:
        return layers - 1 - int(found.group(1))
    return layers if "embeddings" in name else 0
