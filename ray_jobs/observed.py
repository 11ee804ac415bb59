"""What a training's select role says of the PD, beside the loss: caught as batches pass."""

from typing import Any

import torch
from torch import Tensor, distributed

from models.nets.network import Network, Outputs
from models.scoring.metrics import measure


class Observer:
    """Log-loss and AUC of one binary task over what `network` answers in evaluation mode."""

    def __init__(self, network: Network, task: str) -> None:
        self.task = task
        self.column = list(network.heads.tasks).index(task)
        self._pairs: list[Tensor] = []
        network.register_forward_hook(self._see)

    def _see(self, network: Network, inputs: tuple[Any, ...], outputs: Outputs) -> None:
        if not network.training:
            labels_B = inputs[0].labels_BK[:, self.column]
            self._pairs.append(torch.stack([labels_B, outputs.tasks[self.task]]).detach().cpu())

    def figures(self) -> dict[str, float]:
        """`log_loss` and `auc` of the rows since the last call, over all ranks; of known outcomes,
        and none where these are all the same."""
        pairs = torch.cat(self._pairs, 1)
        self._pairs.clear()
        if distributed.is_available() and distributed.is_initialized():
            shards: list[Tensor] = [pairs] * distributed.get_world_size()
            distributed.all_gather_object(shards, pairs)
            pairs = torch.cat(shards, 1)
        label, logit = pairs[:, torch.isfinite(pairs[0])].double()
        if len(label.unique()) < 2:
            return {}
        y, p = label.numpy(), torch.sigmoid(logit).numpy()
        return {name: float(measure(name, y, p)) for name in ("log_loss", "auc")}
