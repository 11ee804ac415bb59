"""What the ranks of a distributed run tell each other; a process alone is its only rank."""

from typing import TypeVar

from torch import Tensor, distributed

T = TypeVar("T")


def _several() -> bool:
    """Whether this process is one of the ranks of a distributed run."""
    return distributed.is_available() and distributed.is_initialized()


def of_all_ranks(own: T) -> list[T]:
    """What every rank has to say, in their order; every rank must ask."""
    if not _several():
        return [own]
    found = [own] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found


def sum_of_all_ranks(own: Tensor) -> Tensor:
    """The sum of every rank's tensor, on the device of the ranks' backend; every rank must ask."""
    total = own.clone()
    if _several():
        distributed.all_reduce(total)
    return total
