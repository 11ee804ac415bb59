"""FSDP: weights, gradients, the optimiser's state and the average in shards, one a rank.

A layer's weights are whole only while it computes. Every rank must therefore run every layer
equally often. Source: Zhao et al. 2023, "PyTorch FSDP: experiences on scaling fully sharded data
parallel".
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from models.data.batch import Batch, Texts
from models.data.schema import UserError
from models.nets.network import Network


def shard(network: Network) -> Network:
    """The network, on its device, cut up in place: each layer of the encoder, and the rest.

    Raises UserError where ranks would not meet to gather weights.
    """
    if not network.text.learns:
        raise UserError("train.sharding: fsdp is for a text encoder that learns; use ddp")
    if network.heads.uncertainty is not None:
        raise UserError("train.sharding: learned task weights need ddp")
    for module in list(network.text.encoder.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer)
    # else its weights would stay whole after an evaluation, and be old ones in the next step
    fully_shard(network, reshard_after_forward=True)
    return network


def evened(batch: Batch, network: nn.Module) -> Batch:
    """The batch with as many chunks of texts as on the rank that has most, where the network is in
    shards; the added ones are of one token, and nobody's."""
    if not isinstance(network, FSDPModule):
        return batch
    texts = batch.texts
    chunks = torch.tensor(max(1, len(texts.tokens)), device=batch.user_B.device)
    distributed.all_reduce(chunks, distributed.ReduceOp.MAX)
    added = int(chunks) - len(texts.tokens)
    one = torch.ones(1, 1, dtype=torch.int64, device=batch.user_B.device)
    more = (one,) * added
    strings = texts.strings + ("",) * added
    return replace(batch, texts=Texts(texts.tokens + more, texts.masks + more, strings))


def gathered(value: Any) -> Any:
    """The same tree of values with whole tensors where there were shards; every rank must ask."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {key: gathered(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(one) for one in value)
    return value


def like(whole: Tensor, own: Tensor) -> Tensor:
    """A whole tensor in the shards of another one of its shape; as it is, where that has none."""
    if not isinstance(own, DTensor) or whole.shape != own.shape:
        return whole
    return distribute_tensor(whole.to(own.device), own.device_mesh, own.placements)
