"""The average follows the weights, is lent to the network, and survives a restart."""

import copy

import pytest
import torch
from torch import nn

from models.nets.average import Average


def network(value: float) -> nn.Linear:
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    with torch.no_grad():
        layer.weight.fill_(value)
        layer.bias.fill_(7.0)
    return layer


def stepped(layer: nn.Linear, average: Average, values: list[float]) -> None:
    for value in values:
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update()


def test_it_is_the_exponential_mean_of_the_steps() -> None:
    layer = network(0.0)
    average = Average(layer, 0.2)
    stepped(layer, average, [1.0, 2.0, 3.0])
    expected = 1.0  # the first step is taken whole: what came before it was not learned
    for step, value in ((1, 2.0), (2, 3.0)):
        decay = min(0.2, step / (step + 10))
        expected = decay * expected + (1 - decay) * value
    with average.applied():
        assert layer.weight.flatten().tolist() == pytest.approx([expected] * 2)
        assert layer.bias.item() == 7.0
    assert layer.weight.flatten().tolist() == [3.0, 3.0]


def test_without_decay_it_is_the_last_step() -> None:
    layer = network(0.0)
    average = Average(layer, 0.0)
    stepped(layer, average, [1.0, 5.0])
    with average.applied():
        assert layer.weight.flatten().tolist() == [5.0, 5.0]


@pytest.mark.parametrize("while_applied", [False, True])
def test_it_goes_on_after_a_restart_as_if_there_was_none(while_applied: bool) -> None:
    whole, layer = network(0.0), network(0.0)
    undisturbed, average = Average(whole, 0.9), Average(layer, 0.9)
    for one, mean in ((whole, undisturbed), (layer, average)):
        stepped(one, mean, [1.0, 2.0])
    if while_applied:
        with average.applied():
            state = copy.deepcopy(average.state())
    else:
        state = copy.deepcopy(average.state())
    again = network(99.0)
    resumed = Average(again, 0.9)
    resumed.resume(state)
    for one, mean in ((whole, undisturbed), (again, resumed)):
        stepped(one, mean, [4.0, 3.0])
    with undisturbed.applied(), resumed.applied():
        assert torch.equal(whole.weight, again.weight)
    assert torch.equal(whole.weight, again.weight)
