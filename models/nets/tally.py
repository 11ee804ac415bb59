"""What the steps of an epoch add up to: sums that go on after a restart and add up over ranks.

Shapes: K tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.data.batch import Batch
from models.nets.ranks import sum_of_all_ranks

NUMBERS = 5  # beside the losses: rows, tokens, places for tokens, seconds, seconds of waiting


class Tally:
    """Losses of K tasks, rows, padding of texts and time, of one rank or of all."""

    def __init__(self, tasks: int) -> None:
        self.sums = torch.zeros(2 * tasks + NUMBERS, dtype=torch.float64)

    def add(self, batch: Batch, losses: Tensor, chunks: Sequence[Tensor]) -> None:
        """Take in a batch, the sums and counts [2, K] of its losses, and its texts' tokens in the
        chunks [U, L] in which they were encoded."""
        tokens = sum(int(mask.sum()) for mask in batch.texts.masks)
        places = sum(chunk.numel() for chunk in chunks)
        numbers = torch.tensor([len(batch), tokens, places, 0, 0])
        self.sums += torch.cat([losses.detach().cpu().flatten(), numbers])

    def spend(self, seconds: float, waited: float) -> None:
        """Take in the time of a step, and how much of it went by waiting for data."""
        self.sums[-2:] += torch.tensor([seconds, waited], dtype=torch.float64)

    def over_ranks(self, device: torch.device) -> "Tally":
        """The sum over all ranks; every rank must ask."""
        total = Tally((len(self.sums) - NUMBERS) // 2)
        total.sums = sum_of_all_ranks(self.sums.to(device)).cpu()
        return total

    @property
    def losses(self) -> Tensor:
        """[2, K]: sums of losses, and how many labels they were of."""
        return self.sums[:-NUMBERS].reshape(2, -1)

    @property
    def rows(self) -> int:
        """Rows seen."""
        return int(self.sums[-5])

    @property
    def padding(self) -> float:
        """Share of the places for tokens that hold none."""
        return 1 - float(self.sums[-4] / self.sums[-3].clamp(min=1)) if self.sums[-3] else 0.0

    @property
    def seconds(self) -> float:
        """Seconds, of every rank."""
        return float(self.sums[-2])

    @property
    def waiting(self) -> float:
        """Share of the seconds in which a rank had no batch to work on."""
        return float(self.sums[-1] / self.sums[-2]) if self.sums[-2] else 0.0
