"""What waits is answered together, each with its own answer, and nothing waits for ever."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from ray_jobs.serving.batcher import Batcher

PATIENCE_S = 10.0

Answering = Callable[[Sequence[int]], Sequence[int | BaseException]]


class Held:
    """Answers tenfold, once it is let; notes what it was asked together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.let = threading.Event(), threading.Event()

    def __call__(self, asked: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(asked))
        self.begun.set()
        assert self.let.wait(PATIENCE_S)
        return [ValueError(f"no {n}") if n < 0 else 10 * n for n in asked]


async def queued(held: Held, several: Sequence[int], most: int) -> list[asyncio.Task[int]]:
    """Tasks of `several`, of which the first is being answered and the others wait."""
    batcher = Batcher(held, most)
    tasks = [asyncio.create_task(batcher(several[0]))]
    assert await asyncio.to_thread(held.begun.wait, PATIENCE_S)
    tasks += [asyncio.create_task(batcher(n)) for n in several[1:]]
    await asyncio.sleep(0)  # a turn of the loop, in which each gets in line
    return tasks


def test_what_waits_is_the_next_batch() -> None:
    held = Held()

    async def ask() -> list[int]:
        tasks = await queued(held, range(6), most=3)
        held.let.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(ask()) == [0, 10, 20, 30, 40, 50]
    assert held.batches == [[0], [1, 2, 3], [4, 5]]


def test_a_batcher_at_rest_starts_again() -> None:
    held = Held()
    held.let.set()

    async def ask() -> list[int]:
        batcher = Batcher(held, 3)
        return [await batcher(n) for n in range(3)]

    assert asyncio.run(ask()) == [0, 10, 20]
    assert held.batches == [[0], [1], [2]]


def test_an_exception_is_for_one() -> None:
    held = Held()

    async def ask() -> list[int | BaseException]:
        tasks = await queued(held, [1, 2, -3, 4], most=8)
        held.let.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third, fourth = asyncio.run(ask())
    assert (first, second, fourth) == (10, 20, 40)
    assert isinstance(third, ValueError) and str(third) == "no -3"


def test_who_left_is_not_answered() -> None:
    held = Held()

    async def ask() -> list[int]:
        tasks = await queued(held, [1, 2, 3, 4], most=8)
        tasks[0].cancel()  # in the batch that is being answered
        tasks[2].cancel()  # in line
        await asyncio.sleep(0)
        held.let.set()
        return await asyncio.gather(tasks[1], tasks[3])

    assert asyncio.run(ask()) == [20, 40]
    assert held.batches == [[1], [2, 4]]


def broken(asked: Sequence[int]) -> list[int | Exception]:
    raise OSError("broken")


def forgetful(asked: Sequence[int]) -> list[int | Exception]:
    return [*asked[1:]]


class Panic(BaseException):
    """As Rust's are, which no `except Exception` catches."""


def panicking(asked: Sequence[int]) -> list[int | Exception]:
    raise Panic


def stopped(asked: Sequence[int]) -> list[int | Exception]:
    return [StopIteration() for _ in asked]  # an exception that no future takes


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (broken, OSError),
        (forgetful, ValueError),
        (panicking, RuntimeError),
        (stopped, RuntimeError),
    ],
)
def test_a_fault_leaves_nobody_waiting(answer: Answering, error: type[Exception]) -> None:
    async def ask() -> list[int | BaseException]:
        batcher = Batcher(answer, 2)  # so that there is a batch after the one that fails
        return await asyncio.gather(*(batcher(n) for n in range(4)), return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(ask(), PATIENCE_S))
    assert [type(one) for one in found] == [error] * 4
