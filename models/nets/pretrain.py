"""Training without labels: the loop that pretraining of texts and of events share."""

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data.schema import UserError
from models.nets.config import PretrainLoop
from models.nets.fit import agreed_precision, autocast

T = TypeVar("T")
WARMUP = 0.1  # share of all steps
CLIP_NORM = 1.0
TEMPERATURE = 0.05  # of likenesses
ADVICE = "lower the learning_rate under pretrain"


def contrast(first_UE: Tensor, second_UE: Tensor) -> Tensor:
    """The mean cross-entropy of finding each one's other among all others, both ways.

    Source: Chen et al. 2020, "A simple framework for contrastive learning of visual
    representations" (SimCLR). [U, E] each; the others of a row are its own batch's.
    """
    with torch.autocast(first_UE.device.type, enabled=False):  # bf16 cannot tell near ones
        first_UE, second_UE = (
            functional.normalize(one.float(), dim=1) for one in (first_UE, second_UE)
        )
        alike_UU = first_UE @ second_UE.T / TEMPERATURE
    own_U = torch.arange(len(alike_UU), device=alike_UU.device)
    there = functional.cross_entropy(alike_UU, own_U)
    return (there + functional.cross_entropy(alike_UU.T, own_U)) / 2


def descend(
    model: nn.Module,
    batches: Callable[[int], Iterable[T]],
    steps: int,
    loss_of: Callable[[T], Tensor],
    config: PretrainLoop,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> list[float]:
    """Train a model on the batches of each epoch, `steps` in every one; each epoch's mean loss.

    `progress` is told the step and the steps of the whole run, before each step. Raises UserError
    on a loss that is not finite, with its epoch and step.
    """
    from transformers import get_cosine_schedule_with_warmup

    model.to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, config.learning_rate)
    total = steps * config.epochs
    schedule = get_cosine_schedule_with_warmup(optimizer, int(WARMUP * total), total)
    precision = agreed_precision(config.precision, device)
    means = []
    for epoch in range(config.epochs):
        losses = []
        for step, batch in enumerate(batches(epoch)):
            progress(epoch * steps + step, total)
            with autocast(precision, device):
                loss = loss_of(batch)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise UserError(f"epoch {epoch}, step {step}: the loss is {losses[-1]}; {ADVICE}")
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        means.append(sum(losses) / steps)
    model.eval()
    return means
