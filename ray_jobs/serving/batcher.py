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

    `answer` gives an answer or an exception for each of what it was given, in order. What nobody
    waits for any longer is left out. Belongs to the event loop that it is called in.
    """

    def __init__(
        self, answer: Callable[[Sequence[Asked]], Sequence[Answer | Exception]], most: int
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
        while batch := self._next():
            try:
                answers = await asyncio.to_thread(self._answer, [asked for asked, _ in batch])
                answered = list(zip(batch, answers, strict=True))
            except Exception as error:
                answered = [(one, error) for one in batch]
            for (_, future), answer in answered:
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        self._at_work = None

    def _next(self) -> list[tuple[Asked, asyncio.Future[Answer]]]:
        batch: list[tuple[Asked, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < self._most:
            asked, future = self._waiting.popleft()
            if not future.done():
                batch.append((asked, future))
        return batch
