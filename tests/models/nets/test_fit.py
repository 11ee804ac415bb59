"""The training loop: it learns, stops, and says where a loss went wrong."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from models.data.batch import Batch
from models.data.schema import UserError
from models.nets import fit as fitting
from models.nets.fit import Epoch, FitConfig, Loop, Step, agreed_precision, autocast
from models.nets.network import Network

CPU = torch.device("cpu")
Make = Callable[..., Network]


@pytest.fixture(scope="module")
def batches(make_batches: Callable[[int], list[Batch]]) -> list[Batch]:
    return make_batches(24)


def ignore(epoch: Epoch, loop: Loop) -> None:
    pass


def fitted(
    network: Network, config: FitConfig, fit: list[Batch], select: list[Batch] | None = None
) -> tuple[Loop, list[Epoch]]:
    loop, epochs = Loop(network, config, len(fit), CPU), []
    chosen = fit if select is None else select
    loop.run(lambda _: fit, lambda _: chosen, lambda epoch, _: epochs.append(epoch))
    return loop, epochs


def test_the_loss_falls_on_what_can_be_learned(make_network: Make, batches: list[Batch]) -> None:
    config = FitConfig(epochs=8, learning_rate=5e-3, precision="fp32")
    loop, epochs = fitted(make_network(), config, batches)
    assert [e.epoch for e in epochs] == list(range(8))
    assert epochs[-1].train_loss < 0.75 * epochs[0].train_loss
    assert epochs[-1].select_loss < 0.75 * epochs[0].select_loss
    assert loop.best_loss == min(e.select_loss for e in epochs)
    assert all(e.rows_per_s > 0 and e.seconds > 0 for e in epochs)
    assert json.loads(json.dumps(epochs[0].to_dict()))["epoch"] == 0


def test_an_epochs_loss_is_the_weighted_mean_over_rows_with_a_label(
    make_network: Make, batches: list[Batch]
) -> None:
    """Batches of unequal size and unequal numbers of labels; the rate too small to move."""
    network = make_network()
    config = FitConfig(epochs=1, learning_rate=1e-12, text_learning_rate=1e-12, precision="fp32")
    uneven = [
        batches[0],
        replace(batches[1], labels_BK=batches[1].labels_BK * math.nan),
        *batches[2:],
    ]
    _, (epoch,) = fitted(network, config, uneven)
    with torch.no_grad():
        sums, counts = sum(
            (network.heads.loss(network(b).tasks, b.labels_BK) for b in uneven), torch.zeros(2, 3)
        )
    weights = torch.tensor([1.0, 0.5, 0.5])
    expected = float((weights * sums / counts).sum())
    assert epoch.select_loss == pytest.approx(expected, rel=1e-5)
    assert epoch.train_loss == pytest.approx(expected, rel=1e-5)


def test_it_stops_when_the_select_loss_no_longer_falls(
    make_network: Make, batches: list[Batch]
) -> None:
    """The select role says the opposite of the fit role, so learning makes it worse."""
    opposite = [replace(b, labels_BK=1 - b.labels_BK.clamp(max=1)) for b in batches]
    config = FitConfig(epochs=40, learning_rate=5e-3, patience=3, precision="fp32")
    loop, epochs = fitted(make_network(), config, batches, opposite)
    losses = [e.select_loss for e in epochs]
    best = losses.index(min(losses))
    assert len(epochs) == best + 1 + 3 < 40
    assert [e.best for e in epochs][best:] == [True, False, False, False]
    assert loop.stale == 3
    again = Loop(loop.network, config, len(batches), CPU)
    again.resume(loop.state())
    before = len(epochs)
    for stopped in (loop, again):  # a run that has stopped stays so
        stopped.run(lambda _: batches, lambda _: batches, lambda epoch, _: epochs.append(epoch))
    assert len(epochs) == before


def test_accumulated_batches_are_one_large_batch(
    make_network: Make, make_batches: Callable[[int], list[Batch]]
) -> None:
    """All rows with all labels, so that the mean of two halves is the mean of the whole."""
    small, large = (
        [replace(b, labels_BK=b.labels_BK.nan_to_num(0.0)) for b in make_batches(size)[:count]]
        for size, count in ((12, 4), (24, 2))
    )
    ends = []
    for fit, accumulate in ((small, 2), (large, 1)):
        fields = {"learning_rate": 1e-4, "alone_weight": 0.0, "accumulate": accumulate}
        loop = Loop(make_network(), FitConfig(epochs=1, precision="fp32", **fields), len(fit), CPU)
        rows: list[int] = []
        loop.run(
            lambda _, fit=fit: fit,
            lambda _: large,
            ignore,
            lambda step, _, rows=rows: rows.append(step.rows),
        )
        assert rows == [24, 24]
        ends.append(torch.cat([p.detach().flatten() for p in loop.network.parameters()]))
    assert torch.allclose(*ends, atol=1e-5)


def test_the_last_step_of_an_epoch_takes_what_is_left(
    make_network: Make, batches: list[Batch]
) -> None:
    config = FitConfig(epochs=2, accumulate=3, precision="fp32")
    loop, steps = Loop(make_network(), config, 4, CPU), list[int]()
    loop.run(
        lambda _: batches[:4],
        lambda _: batches[:1],
        ignore,
        lambda step, loop: steps.append(step.rows),
    )
    assert steps == [72, 24, 72, 24]
    assert loop.updates == loop.total_updates == 4


def poisoned(network: Network, batches: list[Batch], step: int) -> Iterator[Batch]:
    for k, batch in enumerate(batches):
        if k == step:
            with torch.no_grad():
                network.tabular.wide.bias.fill_(math.nan)
        yield batch


def test_a_loss_that_is_not_finite_names_epoch_step_and_users(
    make_network: Make, batches: list[Batch]
) -> None:
    """Where a batch is to blame, the weights stay as they were."""
    network = make_network()
    config = FitConfig(precision="fp32", accumulate=2)
    loop, before = Loop(network, config, len(batches), CPU), dict[str, torch.Tensor]()
    bad = replace(batches[3], tabular_BF=batches[3].tabular_BF * 1e38)

    def fit(epoch: int) -> list[Batch]:
        return [*batches[:3], bad, *batches[4:]] if epoch == 1 else batches

    def stepped(step: Step, loop: Loop) -> None:
        before.update({k: v.clone() for k, v in loop.network.state_dict().items()})

    first = bad.user_B.unique()[0].item()
    said = rf"epoch 1, step 3: the loss is (nan|inf) for user_key {first}, .* more; lower .*rate"
    with pytest.raises(UserError, match=said):
        loop.run(fit, lambda _: batches, ignore, stepped)
    assert (loop.epoch, loop.step) == (1, 2)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_select_loss_that_is_not_finite_is_never_reported(
    make_network: Make, batches: list[Batch]
) -> None:
    network, reported = make_network(), list[Epoch]()
    loop = Loop(network, FitConfig(precision="fp32"), len(batches), CPU)
    with pytest.raises(UserError, match=r"epoch 0: the select loss is nan"):
        loop.run(
            lambda _: batches,
            lambda _: poisoned(network, batches, step=0),
            lambda epoch, _: reported.append(epoch),
        )
    assert reported == []


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.95])
@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (2, 4), (3, 5)])
def test_the_learning_rates_rise_and_end_at_zero(
    make_network: Make, batches: list[Batch], warmup: float, epochs: int, steps: int
) -> None:
    rates_of = {"learning_rate": 1e-2, "text_learning_rate": 1e-3}
    config = FitConfig(epochs=epochs, warmup=warmup, patience=99, precision="fp32", **rates_of)
    loop = Loop(make_network(), config, steps, CPU)
    rates = []
    batch = batches[0]
    loop.run(
        lambda _: itertools.repeat(batch, steps),
        lambda _: [batch],
        ignore,
        lambda *_: rates.append([group["lr"] for group in loop.optimizer.param_groups]),
    )
    assert len(rates) == epochs * steps == loop.updates
    shares = [rate[0] / 1e-3 for rate in rates]  # the encoder comes first
    assert all(0 < share <= 1 for share in shares)
    peak = shares.index(max(shares))
    assert shares[:peak] == sorted(shares[:peak])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert peak <= math.ceil(warmup * epochs * steps)


def test_a_step_beyond_the_promised_number_changes_nothing(
    make_network: Make, batches: list[Batch]
) -> None:
    """An epoch may hold a batch more than was announced; the rate is then zero, not back up."""
    loop = Loop(make_network(), FitConfig(epochs=1, precision="fp32"), 2, CPU)
    seen = {}

    def fit(epoch: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches[:4]):
            seen[step] = loop.network.tabular.wide.weight.detach().clone()
            yield batch

    loop.run(fit, lambda _: batches[:1], ignore)
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])


def test_groups_hold_each_trainable_parameter_once(make_network: Make) -> None:
    network = make_network()
    config = FitConfig(learning_rate=1e-2, text_learning_rate=1e-3, weight_decay=0.3)
    groups = Loop(network, config, 1, CPU).optimizer.param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    encoder = {id(p) for p in network.text.encoder.parameters()}
    for group in groups:
        assert {group["initial_lr"] == 1e-3} == {id(p) in encoder for p in group["params"]}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}


def test_frozen_layers_keep_their_weights(make_network: Make, batches: list[Batch]) -> None:
    network = make_network()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    fitted(network, FitConfig(epochs=1, learning_rate=5e-3, precision="fp32"), batches)
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != torch.equal(parameter, before[name]), name


def test_a_frozen_encoder_thaws(make_network: Make, batches: list[Batch]) -> None:
    """Frozen epochs leave it as it is, to the bit; the ones after them do not."""
    config = FitConfig(epochs=3, frozen_epochs=2, learning_rate=5e-3, patience=9, precision="fp32")
    loop = Loop(make_network(), config, len(batches), CPU)
    states = [{k: v.clone() for k, v in loop.network.text.encoder.state_dict().items()}]
    towers = [loop.network.text.project.weight.detach().clone()]

    def done(epoch: Epoch, loop: Loop) -> None:
        encoder = loop.network.text.encoder.state_dict()
        states.append({k: v.clone() for k, v in encoder.items()})
        towers.append(loop.network.text.project.weight.detach().clone())

    loop.run(lambda _: batches, lambda _: batches, done)
    same = [all(torch.equal(now[k], states[0][k]) for k in now) for now in states]
    assert same == [True, True, True, False]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(towers))


def test_a_frozen_epoch_is_what_an_encoder_at_rest_gives(
    make_network: Make, batches: list[Batch]
) -> None:
    """Kept encodings are those that would have been made anew."""
    frozen = FitConfig(epochs=2, frozen_epochs=2, precision="fp32")
    at_rest = FitConfig(epochs=2, text_learning_rate=1e-30, weight_decay=0.0, precision="fp32")
    kept = fitted(make_network(), frozen.model_copy(update={"weight_decay": 0.0}), batches)[1]
    anew = fitted(make_network(), at_rest, batches)[1]
    expected = [e.select_loss for e in anew]
    assert [e.select_loss for e in kept] == pytest.approx(expected, rel=1e-4)


def test_half_precision_trains_too(make_network: Make, batches: list[Batch]) -> None:
    losses = [
        fitted(make_network(), FitConfig(epochs=2, precision=precision), batches)[1][-1]
        for precision in ("fp32", "bf16")
    ]
    assert losses[1].select_loss == pytest.approx(losses[0].select_loss, rel=0.05)
    assert losses[1].select_loss != losses[0].select_loss


def test_full_precision_is_kept_when_asked_for() -> None:
    one = torch.ones(2, 2)
    with autocast("fp32", CPU):
        assert (one @ one).dtype == torch.float32
    with autocast("bf16", CPU):
        assert (one @ one).dtype == torch.bfloat16


def half_is_taken(rank: int, folder: Path, opinions: tuple[bool, bool]) -> None:
    """A rank of two, with an opinion of its own on what is faster; leaves what it takes."""
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    fitting.bf16_is_faster = lambda _: opinions[rank]  # type: ignore[assignment]
    (folder / f"{rank}").write_text(agreed_precision("auto", CPU))
    distributed.destroy_process_group()


@pytest.mark.parametrize("opinions", [(True, True), (True, False)])
def test_ranks_agree_on_a_precision(tmp_path: Path, opinions: tuple[bool, bool]) -> None:
    multiprocessing.spawn(half_is_taken, (tmp_path, opinions), nprocs=2)
    taken = "bf16" if all(opinions) else "fp32"
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == [taken, taken]


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_one_rank_of_a_distributed_run_trains_as_a_single_process(
    make_network: Make, batches: list[Batch], tmp_path: Path, frozen: int
) -> None:
    """Rows without texts, events, ties or labels too: DDP fails on a gradient that is missing."""
    bare = replace(
        batches[0],
        type_BS=torch.zeros_like(batches[0].type_BS),
        text_BT=torch.full_like(batches[0].text_BT, -1),
        texts=replace(batches[0].texts, tokens=(), masks=(), strings=()),
        tied_B=torch.zeros_like(batches[0].tied_B),
        labels_BK=torch.full_like(batches[0].labels_BK, math.nan),
    )
    rows = [batches[0], bare, batches[1]]
    config = FitConfig(epochs=3, frozen_epochs=frozen, patience=9, precision="fp32")
    alone, epochs = fitted(make_network(), config, rows)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        loop, own = Loop(make_network(), config, len(rows), CPU, DistributedDataParallel), []
        loop.run(lambda _: rows, lambda _: rows, lambda epoch, _: own.append(epoch))
    finally:
        distributed.destroy_process_group()
    assert [e.select_loss for e in own] == pytest.approx([e.select_loss for e in epochs], rel=1e-5)
    for name, value in loop.network.state_dict().items():
        assert torch.allclose(value, alone.network.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"learning_rate": 0}, {"warmup": 1.0}, {"precision": "fp8"}, {"lr": 1e-3}],
)
def test_an_impossible_configuration_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FitConfig.model_validate(bad)
