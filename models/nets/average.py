"""A running average of a network's weights, which is what is kept of a training.

Steps near the end of a run still wander around a minimum; their average is nearer to it. Source:
Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.nets.sharding import gathered, like


class Average:
    """An exponential moving average of the weights that learn; with `decay` 0, the weights.

    Young averages decay faster, so that the first steps are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._weights = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self._aside = {n: p.detach().clone() for n, p in self._weights.items()}
        self._applied = False

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        assert not self._applied
        decay = min(self.decay, self.steps / (self.steps + 10))
        self.steps += 1
        average = get_ema_multi_avg_fn(decay)
        average(list(self._aside.values()), list(self._weights.values()), self.steps)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the network has the average as its weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            held = weight.detach().clone()
            weight.copy_(self._aside[name])
            self._aside[name].copy_(held)
        self._applied = not self._applied

    def state(self) -> dict[str, Any]:
        """The average and the latest weights, on whichever side they are; of whole tensors."""
        both = (self._weights, self._aside) if self._applied else (self._aside, self._weights)
        average, latest = ({n: gathered(w.detach()) for n, w in side.items()} for side in both)
        return {"steps": self.steps, "average": average, "latest": latest}

    @torch.no_grad()
    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        assert not self._applied
        self.steps = state["steps"]
        for name, weight in self._weights.items():
            self._aside[name].copy_(like(state["average"][name], weight))
            weight.copy_(like(state["latest"][name], weight))
