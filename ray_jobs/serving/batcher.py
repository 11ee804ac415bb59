"""Requests that wait while a batch is answered form the next batch.

Ray Serve's own `serve.batch` (2.60, `_process_batches`) closes a batch a few milliseconds after its
first request came, whether or not the batch before is done: under load, batches of one.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batcher(Generic[Asked, Answer]):
    """Calls `answer` in a thread, with at most `most` of what waits, one batch at a time.

    `answer` gives an answer, or what was raised, for each of what it was given, in order. What
    nobody waits for any longer is left out. Belongs to the event loop that it is called in.
    """

    def __init__(
        self, answer: Callable[[Sequence[Asked]], Sequence[Answer | BaseException]], most: int
    ) -> None:
        self._answer = answer
        self._most = most
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._at_work: asyncio.Task[None] | None = None

    async def __call__(self, asked: Asked) -> Answer:
        """The answer. Raises the exception that `answer` gives, or raises, for it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._at_work is None:
            # without the context of this request: the others' answers are not part of it
            self._at_work = asyncio.create_task(self._work(), context=contextvars.Context())
        return await future

    async def _work(self) -> None:
        try:
            while batch := self._next():
                answers = await asyncio.to_thread(self._answers, [asked for asked, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    if future.done():
                        continue
                    if isinstance(answer, BaseException):
                        future.set_exception(_as_exception(answer))
                    else:
                        future.set_result(answer)
        finally:
            self._at_work = None

    def _answers(self, asked: list[Asked]) -> Sequence[Answer | BaseException]:
        """As many answers as were asked for, whatever happens."""
        try:
            answers = self._answer(asked)
            if len(answers) != len(asked):
                raise ValueError(f"{len(answers)} answers to {len(asked)} requests")
        except BaseException as error:
            return [error] * len(asked)
        return answers

    def _next(self) -> list[tuple[Asked, asyncio.Future[Answer]]]:
        batch: list[tuple[Asked, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < self._most:
            asked, future = self._waiting.popleft()
            if not future.done():
                batch.append((asked, future))
        return batch


def _as_exception(error: BaseException) -> Exception:
    """What a future can hold, of whatever was raised: a panic of Polars is no `Exception`."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(type(error).__name__).with_traceback(error.__traceback__)
