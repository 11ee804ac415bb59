"""Which trials go on, and which of them wins. Pure functions of numbers."""

import statistics
from collections.abc import Mapping, Sequence

from pydantic import Field

from models.data.strict import Strict

Curve = Mapping[int, float]  # epochs trained → the value that would be kept


class Halving(Strict):
    """Asynchronous successive halving: at rungs of `first` · `factor`^k epochs, only the best
    1 / `factor` of the trials that came so far go on.

    Source: Li et al. 2020, "A system for massively parallel hyperparameter tuning" (ASHA), in the
    variant that stops a trial instead of pausing it.
    """

    first: int = Field(default=1, ge=1)
    factor: int = Field(default=3, ge=2)

    def rungs(self, last: int) -> list[int]:
        """The epochs after which trials are judged, all before the `last`."""
        found, step = [], self.first
        while step < last:
            found.append(step)
            step *= self.factor
        return found

    def stops(self, step: int, last: int, curve: Curve, others: Sequence[Curve]) -> bool:
        """Whether a trial with this curve ends after `step`; values are losses, less is better."""
        if step not in self.rungs(last):
            return False
        better = sum(step in other and other[step] < curve[step] for other in others)
        reached = 1 + sum(step in other for other in others)
        return better >= max(1, reached // self.factor)


def dominated(values: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether another point is nowhere worse and somewhere better; values are losses."""
    return any(
        all(o <= v for o, v in zip(other, values, strict=True)) and tuple(other) != tuple(values)
        for other in others
    )


def pareto(points: Mapping[int, Sequence[float]]) -> list[int]:
    """The points that no other dominates, by their first value."""
    front = [n for n, values in points.items() if not dominated(values, list(points.values()))]
    return sorted(front, key=lambda number: tuple(points[number]))


def winner(confirmed: Mapping[int, Sequence[float]]) -> int:
    """The point with the lowest mean loss over seeds; of equal ones, the first."""
    return min(confirmed, key=lambda number: (statistics.fmean(confirmed[number]), number))
