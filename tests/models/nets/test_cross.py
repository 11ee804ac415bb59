"""Cross layers: products of inputs, of a degree that grows with the layers."""

import pytest
import torch

from models.nets.cross import CrossNetwork


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_output_is_a_polynomial_of_one_degree_more_than_layers(layers: int) -> None:
    torch.manual_seed(0)
    made = CrossNetwork(5, 3, layers).double()
    scale = torch.arange(layers + 3, dtype=torch.float64)
    with torch.no_grad():
        value_BX = made(scale[:, None] * torch.randn(5, dtype=torch.float64))
    steps = value_BX
    for _ in range(layers + 1):
        steps = steps.diff(dim=0)
    assert (steps.abs() > 1e-9).any()  # of degree layers + 1 in the inputs' scale,
    assert torch.allclose(steps.diff(dim=0), torch.zeros(1, 5).double(), atol=1e-9)  # and no more


def test_one_layer_is_its_formula() -> None:
    torch.manual_seed(0)
    made = CrossNetwork(4, 2, 1)
    x_BX = torch.randn(3, 4)
    down, up = made.down[0], made.up[0]
    expected = x_BX * (x_BX @ (up.weight @ down.weight).T + up.bias) + x_BX
    assert torch.allclose(made(x_BX), expected, atol=1e-6)


def test_an_empty_batch() -> None:
    assert CrossNetwork(4, 2, 2)(torch.zeros(0, 4)).shape == (0, 4)
