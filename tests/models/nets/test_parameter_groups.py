"""Which parameter learns at which rate."""

import re
from collections.abc import Callable

import pytest
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, PreTrainedModel

from models.nets.network import Network
from models.nets.parameter_groups import parameter_groups

SIZES = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}


def bert() -> PreTrainedModel:
    return BertModel(BertConfig(num_hidden_layers=3, **SIZES))


def distilbert() -> PreTrainedModel:
    return DistilBertModel(
        DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_layers=3, n_heads=1)
    )


def rates(encoder: PreTrainedModel, decay: float) -> dict[str, float]:
    network = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(8, 1)})
    groups = parameter_groups(
        network, encoder, rate=0.5, encoder_rate=0.1, layer_decay=decay, weight_decay=0.0
    )
    by_id = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in network.named_parameters() if id(p) in by_id}


@pytest.mark.parametrize("make", [bert, distilbert])
def test_each_layer_learns_slower_than_the_one_above(make: type[PreTrainedModel]) -> None:
    found = rates(make(), 0.8)
    for name, rate in found.items():
        for k in range(3):
            if f"layer.{k}." in name:
                assert rate == pytest.approx(0.1 * 0.8 ** (2 - k)), name
        if ".embeddings." in name:
            assert rate == pytest.approx(0.1 * 0.8**3), name
        if name.startswith("head"):
            assert rate == 0.5
    assert len(set(found.values())) == 5


def test_without_decay_the_encoder_has_one_rate() -> None:
    assert set(rates(bert(), 1.0).values()) == {0.1, 0.5}


def test_what_does_not_learn_is_in_no_group() -> None:
    encoder = bert()
    encoder.embeddings.requires_grad_(False)
    assert not [name for name in rates(encoder, 0.8) if "embeddings" in name]


def test_what_only_shifts_or_scales_does_not_decay(make_network: Callable[..., Network]) -> None:
    """But for the biases that have a row a modality."""
    network = make_network()
    groups = parameter_groups(
        network, network.text.encoder, rate=0.5, encoder_rate=0.1, layer_decay=1.0, weight_decay=0.3
    )
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    shifts = {name for name in names if re.search(r"bias|norm|scale|log_rate", name.lower())}
    still = {name for name, p in network.named_parameters() if decay.get(id(p)) == 0}
    assert still == shifts - {"fusion.bias_MD", "alone.bias_MJ"}
