"""The training loop, one rank of it. Knows torch.distributed, but not Ray.

Shapes: K tasks.
"""

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.data.batch import Batch
from models.data.schema import UserError
from models.nets.average import Average
from models.nets.config import FitConfig, Precision
from models.nets.network import Network
from models.nets.parameter_groups import parameter_groups
from models.nets.ranks import of_all_ranks
from models.nets.sharding import evened, gathered, like
from models.nets.tally import Tally

Batches = Callable[[int], Iterable[Batch]]  # of an epoch
RACE = (768, 768)  # a matrix product of about this size tells which precision is faster
CLEARLY = 1.3  # so that noise does not decide
USERS_NAMED = 5
ADVICE = "lower train.loop.learning_rate"


class DivergedError(UserError):
    """A loss that is not finite: every rank raises it in the same step."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; losses are means over rows with a label, weighted over tasks."""

    epoch: int
    train_loss: float
    select_loss: float
    best: bool
    seconds: float
    rows_per_s: float  # of all ranks
    waiting: float  # share of the time without a batch to work on
    padding: float  # share of the texts' tokens
    precision: Precision  # of its products

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a report or a log."""
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """What one step of the optimiser came to on this rank: `loss` is what it minimised."""

    loss: float
    rows: int
    seconds: float
    waited: float


def unwrapped(network: Network) -> nn.Module:
    """What is called in a run of one rank: the network itself."""
    return network


def ignored(step: Step, loop: "Loop") -> None:
    """What is done after a step where nobody looks."""


class Loop:
    """The state of a run on one rank: network, optimiser, position, the best epoch so far.

    `wrap` makes of the network what is called in training, such as a DDP module. It is called
    anew when the encoder thaws: DDP waits for a gradient of every parameter that it was given.
    `steps_per_epoch` counts batches. The position is all that the learning rates depend on.
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
        self.steps_per_epoch = steps_per_epoch
        self.device = device
        self.wrap = wrap
        self.model: nn.Module | None = None
        self.optimizer = torch.optim.AdamW(_groups(self.network, config), fused=True)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.average = Average(self.network, config.average_decay)
        self.precision = agreed_precision(config.precision, device)
        self.epoch = 0
        self.step = 0  # batches of this epoch that were trained on
        self.best_loss = math.inf
        self.stale = 0
        self.tally = self._tally()

    def run(
        self,
        fit: Batches,
        select: Batches,
        done: Callable[[Epoch, "Loop"], None],
        stepped: Callable[[Step, "Loop"], None] = ignored,
    ) -> None:
        """Train epoch by epoch until the last, or until the select loss stops falling.

        `fit` gives the batches of an epoch from number `self.step` on. `stepped` is called after
        each step of the optimiser and `done` after each epoch, on every rank; in `done` the
        network has its averaged weights. Raises UserError on a loss that is not finite, with its
        epoch, step and users.
        """
        while self.epoch < self.config.epochs and self.stale < self.config.patience:
            self._freeze(self.epoch < self.config.frozen_epochs)
            self._train(fit(self.epoch), stepped)
            with self.average.applied():
                done(self._finished(self._evaluate(select(self.epoch))), self)

    def state(self) -> dict[str, Any]:
        """What a run needs to go on from here, beside the network's weights: the same on every
        rank, and every rank must ask."""
        return {
            "optimizer": gathered(self.optimizer.state_dict()),
            "average": self.average.state(),
            "position": (self.epoch, self.step, self.steps_per_epoch),
            "best_loss": self.best_loss,
            "stale": self.stale,
            "precision": self.precision,
        }

    def own_state(self) -> dict[str, Any]:
        """What each rank needs for itself: its random numbers and its sums of this epoch."""
        cuda = self.device.type == "cuda"
        return {
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            "tally": self.tally.sums.clone(),
        }

    def resume(self, state: dict[str, Any], own: dict[str, Any] | None = None) -> None:
        """Go on from `state()`, and from this rank's `own_state()` where it has one.

        With another number of ranks an epoch has another number of steps; the run goes on after
        the same share of them.
        """
        self.optimizer.load_state_dict(self._sharded(state["optimizer"]))
        self.average.resume(state["average"])
        self.epoch, step, steps = state["position"]
        self.step = step * self.steps_per_epoch // steps
        self.best_loss = state["best_loss"]
        self.stale = state["stale"]
        self.precision = state["precision"]
        if own is not None:
            torch.set_rng_state(own["random"])
            if own["random_cuda"] is not None:
                torch.cuda.set_rng_state(own["random_cuda"], self.device)
            self.tally.sums = own["tally"].clone()

    @property
    def updates(self) -> int:
        """Steps of the optimiser up to here, as the learning rates count them."""
        own = -(-self.step // self.config.accumulate)
        return self.epoch * self._updates_per_epoch + own

    @property
    def total_updates(self) -> int:
        """Steps of the optimiser in a run that is not stopped early."""
        return self.config.epochs * self._updates_per_epoch

    @property
    def _updates_per_epoch(self) -> int:
        return -(-self.steps_per_epoch // self.config.accumulate)

    def _tally(self) -> Tally:
        return Tally(len(self.network.heads.tasks))

    def _sharded(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state of the optimiser in the shards of its weights, where they are in shards."""
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            place: {key: like(value, weights[place]) for key, value in own.items()}
            for place, own in state["state"].items()
        }
        return state | {"state": moments}

    def _freeze(self, frozen: bool) -> None:
        """Freeze or thaw the encoder, if it is not so already and has something to thaw."""
        frozen = frozen or not self.network.text.learns
        if self.model is not None and frozen == self.network.text.frozen:
            return
        self.model = None
        gc.collect()  # a DDP module refers to itself, and leaves its hooks until it is collected
        self.network.text.freeze(frozen)
        self.model = self.wrap(self.network)

    def _train(self, batches: Iterable[Batch], stepped: Callable[[Step, "Loop"], None]) -> None:
        """The rest of an epoch."""
        self.network.train()
        groups, size = iter(batches), self.config.accumulate
        start = time.perf_counter()
        while group := list(itertools.islice(groups, size)):
            waited = time.perf_counter() - start
            loss = self._update(group)
            self.step += len(group)
            end = time.perf_counter()
            self.tally.spend(end - start, waited)
            stepped(Step(loss, sum(map(len, group)), end - start, waited), self)
            start = time.perf_counter()

    def _update(self, group: Sequence[Batch]) -> float:
        """One step of the optimiser on the mean loss of some batches; that loss."""
        self._set_rates()
        losses = []
        for place, batch in enumerate(group):
            last = place == len(group) - 1
            with nullcontext() if last else self._unsynchronised():
                losses.append(self._backward(batch, len(group)))
        # all ranks have the same gradients now, so that all of them stop
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        if not torch.isfinite(gathered(norm)):
            raise DivergedError(f"epoch {self.epoch}, {self._fault(losses, group)}; {ADVICE}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        return sum(losses) / len(losses)

    def _backward(self, batch: Batch, batches: int) -> float:
        """Add the gradients of a batch, one of so many; its loss."""
        assert self.model is not None
        moved = evened(batch.to(self.device), self.network)
        with autocast(self.precision, self.device):
            outputs = self.model(moved)
        sums, alone = self.network.loss(outputs, moved)
        objective = self.network.heads.objective(outputs.tasks, moved.labels_BK)
        loss = objective + self.config.alone_weight * alone
        (loss / batches).backward()
        self.tally.add(batch, sums, moved.texts.tokens)
        return loss.item()

    def _fault(self, losses: Sequence[float], group: Sequence[Batch]) -> str:
        """Where, on any rank, a loss is not finite."""
        own = None
        for place, (loss, batch) in enumerate(zip(losses, group, strict=True)):
            if not math.isfinite(loss):
                own = f"step {self.step + place}: the loss is {loss} for {_users(batch)}"
                break
        said = (one for one in of_all_ranks(own) if one is not None)
        return next(said, f"step {self.step}: the gradient is not finite")

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        """Within, DDP's ranks do not exchange gradients."""
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _set_rates(self) -> None:
        frozen = min(self.config.frozen_epochs, self.config.epochs) * self._updates_per_epoch
        for group in self.optimizer.param_groups:
            start = frozen if group["encoder"] else 0
            share = _rate(start, self.total_updates, self.config.warmup, self.updates)
            group["lr"] = group["initial_lr"] * share

    @torch.no_grad()
    def _evaluate(self, batches: Iterable[Batch]) -> Tally:
        self.network.eval()
        tally = self._tally()
        for batch in batches:
            moved = evened(batch.to(self.device), self.network)
            with autocast(self.precision, self.device):
                outputs = self.network(moved)
            tally.add(batch, self.network.loss(outputs, moved)[0], moved.texts.tokens)
        return tally.over_ranks(self.device)

    def _finished(self, select: Tally) -> Epoch:
        """Close the epoch; what it came to."""
        loss = float(self._mix(select.losses))
        if not math.isfinite(loss):
            raise DivergedError(f"epoch {self.epoch}: the select loss is {loss}; {ADVICE}")
        train = self.tally.over_ranks(self.device)
        own_seconds = max(self.tally.seconds, 1e-9)
        epoch = Epoch(
            epoch=self.epoch,
            train_loss=float(self._mix(train.losses)),
            select_loss=loss,
            best=loss < self.best_loss,
            seconds=own_seconds,
            rows_per_s=train.rows / own_seconds,
            waiting=train.waiting,
            padding=train.padding,
            precision=self.precision,
        )
        self.best_loss = min(loss, self.best_loss)
        self.stale = 0 if epoch.best else self.stale + 1
        self.epoch, self.step, self.tally = self.epoch + 1, 0, self._tally()
        return epoch

    def _mix(self, sums: Tensor) -> Tensor:
        weights = [task.weight for task in self.network.heads.tasks.values()]
        means = sums[0] / sums[1].clamp(min=1)
        return (means * means.new_tensor(weights)).sum()


def agreed_precision(asked: Literal["auto", Precision], device: torch.device) -> Precision:
    """What is asked for; by itself bf16 where every rank's device multiplies it clearly faster.

    In a distributed run every rank must ask: a rank with another precision than the others' would
    hold them up in each step.
    """
    if asked != "auto":
        return asked
    return "bf16" if all(of_all_ranks(bf16_is_faster(device))) else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """What to compute a loss within."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def bf16_is_faster(device: torch.device) -> bool:
    """Whether bf16 pays. GPUs: where they have it. CPUs are raced: that one has the instructions
    does not tell, some are twice as fast in bf16 and some twice as slow."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    ones = [torch.ones(RACE, dtype=kind) for kind in (torch.float32, torch.bfloat16)]
    rounds = [(_cpu_s(ones[0]), _cpu_s(ones[1])) for _ in range(5)]
    fp32, bf16 = min(a for a, _ in rounds), min(b for _, b in rounds)
    return bf16 * CLEARLY < fp32


def _cpu_s(ones: Tensor) -> float:
    """Seconds of this thread alone for a product: ranks start while much else does."""
    start = time.thread_time()
    ones @ ones
    return time.thread_time() - start


def _users(batch: Batch) -> str:
    named = [str(user) for user in batch.user_B.unique().tolist()]
    more = f" and {len(named) - USERS_NAMED} more" if len(named) > USERS_NAMED else ""
    return f"user_key {', '.join(named[:USERS_NAMED])}{more}"


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
