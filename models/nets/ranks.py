"""What the ranks of a distributed run tell each other; a process alone is its only rank."""

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def of_all_ranks(own: T) -> list[T]:
    """What every rank has to say, in their order; every rank must ask."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [own]
    found = [own] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found
