"""A run of the training loop that is cut off goes on to the bit."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from models.data.batch import Batch
from models.nets.fit import Epoch, FitConfig, Loop, Step, ignored
from models.nets.network import Network, NetworkConfig

CPU = torch.device("cpu")
Make = Callable[..., Network]


class KilledError(Exception):
    """What ends a run in the middle."""


@pytest.fixture(scope="module")
def batches(make_batches: Callable[[int], list[Batch]]) -> list[Batch]:
    return make_batches(24)


def test_a_resumed_run_ends_with_the_same_parameters(
    make_network: Make, batches: list[Batch], tmp_path: Path
) -> None:
    config = FitConfig(epochs=4, learning_rate=3e-3, patience=9, precision="fp32")
    whole, epochs = Loop(make_network(), config, len(batches), CPU), list[Epoch]()
    whole.run(lambda _: batches, lambda _: batches, lambda epoch, _: epochs.append(epoch))

    def killed_after_two(epoch: Epoch, loop: Loop) -> None:
        if epoch.epoch == 1:
            torch.save((loop.network.state_dict(), loop.state()), tmp_path / "state.pt")
            raise KilledError

    cut = Loop(make_network(), config, len(batches), CPU)
    with pytest.raises(KilledError):
        cut.run(lambda _: batches, lambda _: batches, killed_after_two)

    # the weights of another seed, so that only what was kept can make the runs equal
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = Loop(make_network(99), config, len(batches), CPU)
    resumed.network.load_state_dict(weights)
    resumed.resume(state)
    rest: list[Epoch] = []
    resumed.run(lambda _: batches, lambda _: batches, lambda epoch, _: rest.append(epoch))
    assert [e.epoch for e in rest] == [2, 3]
    assert [e.select_loss for e in rest] == [e.select_loss for e in epochs[2:]]
    assert resumed.best_loss == whole.best_loss
    expected = whole.network.state_dict()
    for name, value in resumed.network.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_run_cut_off_within_an_epoch_goes_on_to_the_bit(
    make_network: Make, network_config: NetworkConfig, batches: list[Batch], tmp_path: Path
) -> None:
    """With dropout and an average: random numbers, position and sums are all kept."""
    fields = {"epochs": 3, "learning_rate": 3e-3, "patience": 9, "accumulate": 2}
    config = FitConfig(precision="fp32", **fields)
    droppy = network_config.model_copy(update={"dropout": 0.3})

    def loop_of(seed: int) -> Loop:
        return Loop(make_network(seed, config=droppy), config, len(batches), CPU)

    def run(loop: Loop, stepped: Callable[[Step, Loop], None] = ignored) -> list[Epoch]:
        epochs: list[Epoch] = []

        def fit(epoch: int) -> Iterator[Batch]:
            return itertools.islice(reversed(batches) if epoch % 2 else batches, loop.step, None)

        loop.run(fit, lambda _: batches, lambda epoch, _: epochs.append(epoch), stepped)
        return epochs

    def killed(step: Step, loop: Loop) -> None:
        if (loop.epoch, loop.step) == (1, 2):
            with loop.average.applied():
                kept = loop.network.state_dict(), loop.state(), loop.own_state()
                torch.save(kept, tmp_path / "state.pt")
            raise KilledError

    whole = loop_of(3)
    torch.manual_seed(7)
    epochs = run(whole)
    cut = loop_of(3)
    torch.manual_seed(7)
    with pytest.raises(KilledError):
        run(cut, killed)
    resumed = loop_of(99)
    weights, state, own = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.network.load_state_dict(weights)
    resumed.resume(state, own)
    rest = run(resumed)
    for one, expected in zip(rest, epochs[1:], strict=True):
        assert (one.train_loss, one.select_loss) == (expected.train_loss, expected.select_loss)
        assert (one.padding, one.best) == (expected.padding, expected.best)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name


@pytest.mark.parametrize(("steps", "step"), [(20, 10), (7, 3)])
def test_with_other_ranks_a_run_goes_on_after_the_same_share(
    make_network: Make, batches: list[Batch], steps: int, step: int
) -> None:
    config = FitConfig(epochs=3, precision="fp32")
    cut = Loop(make_network(), config, 10, CPU)
    cut.epoch, cut.step = 1, 5
    resumed = Loop(make_network(), config, steps, CPU)
    resumed.resume(cut.state())
    assert (resumed.epoch, resumed.step) == (1, step)
    assert resumed.updates == steps + step
