"""The training loop, one rank of it. Knows torch.distributed's all-reduce, but not Ray.

Shapes: K tasks.
"""

import gc
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, distributed, nn

from models.data.batch import Batch
from models.data.schema import UserError
from models.data.strict import Strict
from models.nets.average import Average
from models.nets.network import Network
from models.nets.parameter_groups import parameter_groups

Batches = Callable[[int], Iterable[Batch]]  # of an epoch
RACE = (768, 768)  # a matrix product of about this size tells which precision is faster
CLEARLY = 1.3  # so that noise does not decide
ADVICE = "lower train.loop.learning_rate"


class FitConfig(Strict):
    """How long and how fast. `batch_rows` is per rank; learning rates are peak values.

    Epochs with a frozen encoder cost little, as each text is encoded once; the encoder is then
    tuned for towers that already read it. Source: Kumar et al. 2022, "Fine-tuning can distort
    pretrained features and underperform out-of-distribution".
    """

    epochs: int = Field(default=3, ge=1)
    frozen_epochs: int = Field(default=0, ge=0)  # the first ones, with the text encoder as it is
    batch_rows: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    text_learning_rate: float = Field(default=1e-4, gt=0)
    text_layer_decay: float = Field(default=1.0, gt=0, le=1)  # of that rate, a layer down
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of all steps
    alone_weight: float = Field(default=0.5, ge=0)  # of each modality's own loss
    clip_norm: float = Field(default=10.0, gt=0)
    average_decay: float = Field(default=0.99, ge=0, lt=1)  # a step; of the weights that are kept
    patience: int = Field(default=2, ge=1)  # epochs without a better select loss
    precision: Literal["auto", "bf16", "fp32"] = "auto"


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; losses are means over rows with a label, weighted over tasks."""

    epoch: int
    train_loss: float
    select_loss: float
    best: bool
    seconds: float
    rows_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a report or a log."""
        return asdict(self)


def unwrapped(network: Network) -> nn.Module:
    """What is called in a run of one rank: the network itself."""
    return network


class Loop:
    """The state of a run on one rank: network, optimiser, schedule, the best epoch so far.

    `wrap` makes of the network what is called in training, such as a DDP module. It is called
    anew when the encoder thaws: DDP waits for a gradient of every parameter that it was given.
    """

    def __init__(
        self,
        network: Network,
        config: FitConfig,
        steps_per_epoch: int,
        device: torch.device,
        wrap: Callable[[Network], nn.Module] = unwrapped,
    ) -> None:
        self.network = network.to(device)
        self.config = config
        self.device = device
        self.wrap = wrap
        self.model: nn.Module | None = None
        groups = _groups(self.network, config)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        total = config.epochs * steps_per_epoch
        frozen = min(config.frozen_epochs, config.epochs) * steps_per_epoch
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            [partial(_rate, frozen if g["encoder"] else 0, total, config.warmup) for g in groups],
        )
        self.average = Average(self.network, config.average_decay)
        self.autocast = autocast(config.precision, device)
        self.next_epoch = 0
        self.best_loss = math.inf
        self.stale = 0

    def run(self, fit: Batches, select: Batches, done: Callable[[Epoch, "Loop"], None]) -> None:
        """Train epoch by epoch until the last, or until the select loss stops falling.

        `done` is called after each epoch on every rank, while the network has its averaged
        weights. Raises UserError on a loss that is not finite, with its epoch and step.
        """
        while self.next_epoch < self.config.epochs and self.stale < self.config.patience:
            epoch, start = self.next_epoch, time.perf_counter()
            self._freeze(epoch < self.config.frozen_epochs)
            train = self._train(fit(epoch), epoch)
            seconds = time.perf_counter() - start
            with self.average.applied():
                loss = self._weighted(self._evaluate(select(epoch)))
                if not math.isfinite(loss):
                    raise UserError(f"epoch {epoch}: the select loss is {loss}; {ADVICE}")
                best = loss < self.best_loss
                self.best_loss = min(loss, self.best_loss)
                self.stale = 0 if best else self.stale + 1
                self.next_epoch += 1
                rows = float(train[2, 0])
                mean = self._weighted(train[:2])
                done(Epoch(epoch, mean, loss, best, seconds, rows / max(seconds, 1e-9)), self)

    def state(self) -> dict[str, Any]:
        """What a run needs to go on after this epoch, beside the network's weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state(),
            "next_epoch": self.next_epoch,
            "best_loss": self.best_loss,
            "stale": self.stale,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.resume(state["average"])
        self.next_epoch = state["next_epoch"]
        self.best_loss = state["best_loss"]
        self.stale = state["stale"]

    def _freeze(self, frozen: bool) -> None:
        """Freeze or thaw the encoder, if it is not so already and has something to thaw."""
        frozen = frozen or not self.network.text.learns
        if self.model is not None and frozen == self.network.text.frozen:
            return
        self.model = None
        gc.collect()  # a DDP module refers to itself, and leaves its hooks until it is collected
        self.network.text.freeze(frozen)
        self.model = self.wrap(self.network)

    def _train(self, batches: Iterable[Batch], epoch: int) -> Tensor:
        """[3, K]: sums and counts of the losses over all ranks, and the rows seen."""
        self.network.train()
        tasks = len(self.network.heads.tasks)
        total = torch.zeros(3, tasks, device=self.device)
        for step, batch in enumerate(batches):
            sums = self._step(batch, f"epoch {epoch}, step {step}")
            total[:2] += sums.detach()
            total[2] += len(batch)
        return _over_ranks(total)

    def _step(self, batch: Batch, where: str) -> Tensor:
        assert self.model is not None
        batch = batch.to(self.device)
        with self.autocast():
            outputs = self.model(batch)
        sums, alone = self.network.loss(outputs, batch)
        objective = self.network.heads.objective(outputs.tasks, batch.labels_BK)
        loss = objective + self.config.alone_weight * alone
        if not torch.isfinite(loss):
            raise UserError(f"{where}: the loss is {loss.item()}; {ADVICE}")
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.average.update()
        return sums

    @torch.no_grad()
    def _evaluate(self, batches: Iterable[Batch]) -> Tensor:
        self.network.eval()
        total = torch.zeros(2, len(self.network.heads.tasks), device=self.device)
        for batch in batches:
            moved = batch.to(self.device)
            with self.autocast():
                outputs = self.network(moved)
            total += self.network.loss(outputs, moved)[0]
        return _over_ranks(total)

    def _mix(self, sums: Tensor) -> Tensor:
        weights = [task.weight for task in self.network.heads.tasks.values()]
        means = sums[0] / sums[1].clamp(min=1)
        return (means * means.new_tensor(weights)).sum()

    def _weighted(self, sums: Tensor) -> float:
        return float(self._mix(sums))


def autocast(
    precision: Literal["auto", "bf16", "fp32"], device: torch.device
) -> Callable[[], AbstractContextManager[Any]]:
    """bf16 where asked for, or by itself where this device multiplies it clearly faster."""
    use = precision == "bf16" or (precision == "auto" and bf16_is_faster(device))
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=use)


def bf16_is_faster(device: torch.device) -> bool:
    """Whether bf16 pays. GPUs: yes. CPUs are raced: that one has the instructions does not tell,
    some are twice as fast in bf16 and some twice as slow."""
    if device.type == "cuda":
        return True
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        left, right = torch.ones(RACE, dtype=kind), torch.ones(RACE, dtype=kind)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - start)
        seconds[kind] = min(times)
    return seconds[torch.bfloat16] * CLEARLY < seconds[torch.float32]


def _groups(network: Network, config: FitConfig) -> list[dict[str, Any]]:
    """The network's groups, with the rates that are configured."""
    return parameter_groups(
        network,
        network.text.encoder,
        rate=config.learning_rate,
        encoder_rate=config.text_learning_rate,
        layer_decay=config.text_layer_decay,
        weight_decay=config.weight_decay,
    )


def _rate(start: int, end: int, warmup: float, step: int) -> float:
    """Zero before `start`; linear warm-up, then a cosine down to zero at `end`."""
    total, step = max(1, end - start), step - start
    first = warmup * total
    if step < 0:
        return 0.0
    if step < first:
        return (step + 1) / (first + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - first) / (total - first))))


def _over_ranks(total: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
    return total
