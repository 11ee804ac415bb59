"""Cross layers: products of inputs, learned. Shapes: B rows, X inputs."""

from torch import Tensor, nn


class CrossNetwork(nn.Module):
    """x_{k+1} = x_0 ⊙ (U_k V_k x_k + b_k) + x_k: products of up to `layers` + 1 inputs.

    U_k V_k is of low rank, so that the cost grows with the inputs, not with their square. Source:
    Wang et al. 2021, "DCN V2: improved deep and cross network", eq. 1 and 2.
    """

    def __init__(self, inputs: int, rank: int, layers: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(inputs, rank, bias=False) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(rank, inputs) for _ in range(layers))

    def forward(self, inputs_BX: Tensor) -> Tensor:
        """[B, X]."""
        crossed_BX = inputs_BX
        for down, up in zip(self.down, self.up, strict=True):
            crossed_BX = inputs_BX * up(down(crossed_BX)) + crossed_BX
        return crossed_BX
