"""What training minimises of a task, and how tasks are weighed. Shapes: B rows, K tasks.

Losses are configured for training only: the reported ones, by which epochs and runs are compared,
stay the plain log-loss.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nets.config import BinaryLoss

MOST_LOG_VARIANCE = 2.0


def binary_loss(logit_B: Tensor, y_B: Tensor, config: BinaryLoss, rate: float) -> Tensor:
    """[B] losses of a task of which a share `rate` is positive.

    A class weight moves the log-odds that minimise the loss by its logarithm. The loss is taken at
    log-odds that have been moved so already: the logit itself stays that of the data, as the base
    rate it starts from is. Weights are scaled to a mean of 1. Sources: Menon et al. 2021,
    "Long-tail learning via logit adjustment"; focal: Lin et al. 2017, "Focal loss for dense object
    detection"; smoothing: Szegedy et al. 2016, "Rethinking the Inception architecture".
    """
    weight = config.weight(rate)
    logit_B = logit_B + math.log(weight)
    smooth_B = y_B * (1 - config.smoothing) + config.smoothing / 2
    loss_B = functional.binary_cross_entropy_with_logits(logit_B, smooth_B, reduction="none")
    if config.focal:
        log_wrong_B = functional.logsigmoid(logit_B * (1 - 2 * y_B))  # of 1 − p of the true class
        loss_B = loss_B * (config.focal * log_wrong_B).exp()
    scale = rate * weight + 1 - rate  # the mean weight of a row
    return loss_B * (1 + (weight - 1) * y_B) / scale


class TaskUncertainty(nn.Module):
    """Losses divided by variances s² that are learned with them: L / s² + log s.

    log s² is bounded by ±`MOST_LOG_VARIANCE`, since the likelihood of an amount, being a density,
    can be above 1 and its loss below 0. Source: Kendall, Gal and Cipolla 2018, "Multi-task learning
    using uncertainty to weigh losses", eq. 7 and 10.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.raw_K = nn.Parameter(torch.zeros(tasks))

    def forward(self, loss_K: Tensor, known_K: Tensor) -> Tensor:
        """[K]; zero for a task with no known label, whose variance stays as it is."""
        log_variance_K = MOST_LOG_VARIANCE * torch.tanh(self.raw_K / MOST_LOG_VARIANCE)
        return (loss_K * torch.exp(-log_variance_K) + log_variance_K / 2) * known_K
