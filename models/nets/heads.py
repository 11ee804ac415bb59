"""Heads and their losses. Shapes: B rows, K tasks, D width."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data.schema import UserError
from models.data.stats import Target, logit
from models.data.tasks import Task, check_binary
from models.nets.config import BinaryLoss, LossConfig
from models.nets.losses import TaskUncertainty, binary_loss

PLAIN = BinaryLoss()


class Heads(nn.Module):
    """One head a task: a logit, or the three parameters of a zero-inflated log-normal.

    A head starts at its task's base rate, so the first steps are not spent on finding it. Raises
    UserError when a loss is given for what is no binary task, and for a task's name that a module
    cannot have.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        targets: Mapping[str, Target],
        width: int,
        losses: LossConfig,
    ) -> None:
        super().__init__()
        check_binary("network.loss.binary", losses.binary, tasks)
        self.tasks = dict(tasks)
        self.targets = dict(targets)
        self.losses = losses
        learned = losses.task_weights == "learned"
        self.uncertainty = TaskUncertainty(len(tasks)) if learned else None
        self.heads = nn.ModuleDict()
        for name, task in tasks.items():
            if hasattr(self.heads, name):
                raise UserError(f"tasks.{name}: torch has a use for this name; rename the task")
            out = nn.Linear(width, 1 if task.kind == "binary" else 3)
            nn.init.normal_(out.weight, std=0.02)
            with torch.no_grad():
                out.bias.zero_()
                out.bias[0] = base_logit(targets[name])
            self.heads[name] = nn.Sequential(nn.Linear(width, width), nn.GELU(), out)

    def forward(self, fused_BD: Tensor) -> dict[str, Tensor]:
        """Task → [B] logit, or [B, 3]: logit of an amount, its log-mean and raw log-spread.

        The latter two are in units of the fit role's log standard deviation around its log mean.
        """
        outputs = {name: head(fused_BD).float() for name, head in self.heads.items()}
        return {n: o.squeeze(-1) if o.shape[-1] == 1 else o for n, o in outputs.items()}

    def loss(self, outputs: Mapping[str, Tensor], labels_BK: Tensor) -> Tensor:
        """[K] sums and [K] counts stacked as [2, K]: losses over the rows with a known label.

        Plain negative log-likelihoods, whatever training minimises.
        """
        return self._sums(outputs, labels_BK, {})

    def objective(self, outputs: Mapping[str, Tensor], labels_BK: Tensor) -> Tensor:
        """What training minimises: the tasks' mean losses, as configured, in their weighted sum.

        Means over the rows of this batch, and 0 where none has a label: a task that few rows have
        weighs less the smaller the batch is.
        """
        sums_K, counts_K = self._sums(outputs, labels_BK, self.losses.binary)
        mean_K = sums_K / counts_K.clamp(min=1)
        if self.uncertainty is not None:
            mean_K = self.uncertainty(mean_K, counts_K > 0)
        weight_K = mean_K.new_tensor([task.weight for task in self.tasks.values()])
        objective: Tensor = (mean_K * weight_K).sum()
        return objective

    def _sums(
        self,
        outputs: Mapping[str, Tensor],
        labels_BK: Tensor,
        losses: Mapping[str, BinaryLoss],
    ) -> Tensor:
        sums, counts = [], []
        for k, (name, task) in enumerate(self.tasks.items()):
            y_B = labels_BK[:, k]
            known_B = torch.isfinite(y_B)
            y_B = torch.where(known_B, y_B, torch.zeros_like(y_B))
            target = self.targets[name]
            if task.kind == "binary":
                loss_B = binary_loss(outputs[name], y_B, losses.get(name, PLAIN), target.rate)
            else:
                loss_B = zero_inflated_log_normal(outputs[name], y_B, target)
            sums.append((loss_B * known_B).sum())
            counts.append(known_B.sum().to(loss_B.dtype))
        return torch.stack([torch.stack(sums), torch.stack(counts)])


class Alone(nn.Module):
    """What each modality would say of the binary tasks by itself; used in training only.

    Trained together, the modality that learns fastest takes the gradient from the others. A loss
    of its own keeps each tower learning. Source: Wang, Tran and Feiszli 2020, "What makes training
    multi-modal classification networks hard?". It starts at the base rates: the gradient of a
    wrong constant is the same for every row, and drives all texts to one encoding.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        targets: Mapping[str, Target],
        modalities: int,
        width: int,
    ) -> None:
        super().__init__()
        self.columns = [k for k, task in enumerate(tasks.values()) if task.kind == "binary"]
        self.weight_MDJ = nn.Parameter(torch.zeros(modalities, width, len(self.columns)))
        base = [base_logit(targets[name]) for name, task in tasks.items() if task.kind == "binary"]
        self.bias_MJ = nn.Parameter(torch.tensor(base).repeat(modalities, 1))

    def forward(self, vectors_BMD: Tensor) -> Tensor:
        """[B, M, J] logits of the J binary tasks."""
        return torch.einsum("bmd,mdj->bmj", vectors_BMD, self.weight_MDJ) + self.bias_MJ

    def loss(self, logits_BMJ: Tensor, known_BM: Tensor, labels_BK: Tensor) -> Tensor:
        """The mean cross-entropy over rows with modality and label, summed over both."""
        y_BMJ = labels_BK[:, self.columns].unsqueeze(1).expand_as(logits_BMJ)
        known_BMJ = torch.isfinite(y_BMJ) & known_BM.unsqueeze(-1)
        y_BMJ = torch.where(known_BMJ, y_BMJ, torch.zeros_like(y_BMJ))
        loss_BMJ = functional.binary_cross_entropy_with_logits(
            logits_BMJ.float(), y_BMJ, reduction="none"
        )
        return ((loss_BMJ * known_BMJ).sum(0) / known_BMJ.sum(0).clamp(min=1)).sum()


def base_logit(target: Target) -> float:
    """The log-odds of the fit role's rate, kept finite."""
    return logit(min(max(target.rate, 1e-4), 1 - 1e-4))


def spread(raw: Tensor) -> Tensor:
    """Log standard deviation from its raw parameter, bounded away from 0 and from infinity."""
    return functional.softplus(raw + math.log(math.e - 1)).clamp(0.05, 4.0)


def zero_inflated_log_normal(output_B3: Tensor, amount_B: Tensor, target: Target) -> Tensor:
    """[B] negative log-likelihood. Source: Wang, Liu and Miao 2019, "A deep probabilistic model
    for customer lifetime value prediction", eq. 4–6; the log-scale constant left out.
    """
    some_B = (amount_B > 0).to(output_B3.dtype)
    any_B = functional.binary_cross_entropy_with_logits(output_B3[:, 0], some_B, reduction="none")
    z_B = (amount_B.clamp(min=1e-6).log() - target.log_mean) / target.log_std
    sigma_B = spread(output_B3[:, 2])
    residual_B = (z_B - output_B3[:, 1]) / sigma_B
    return any_B + some_B * (sigma_B.log() + 0.5 * residual_B**2)


def most_log_amount(target: Target) -> float:
    """The logarithm at which amounts are cut, far beyond any seen, lest an odd row be infinite."""
    return target.log_mean + 6 * target.log_std


def expected_amount(output_B3: Tensor, target: Target) -> Tensor:
    """[B] float64: E[amount] = p · exp(μ + σ² / 2), in the currency's units."""
    output_B3 = output_B3.double()
    mu_B = target.log_mean + target.log_std * output_B3[:, 1]
    sigma_B = target.log_std * spread(output_B3[:, 2])
    exponent_B = (mu_B + 0.5 * sigma_B**2).clamp(max=most_log_amount(target))
    return torch.sigmoid(output_B3[:, 0]) * exponent_B.exp()
