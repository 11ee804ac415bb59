"""Progress of long work: a bar in a terminal, plain lines in a log."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=False, highlight=False, soft_wrap=not sys.stdout.isatty())
POLL_S = 0.5


def say(line: str) -> None:
    """One plain line, at once."""
    console.print(line)
    sys.stdout.flush()


def bar() -> Progress:
    """A bar with counts and the time left; hidden where nobody can see it move."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    return Progress(*columns, console=console, disable=not console.is_terminal)


@ray.remote(num_cpus=0)
class Board:
    """Where the ranks of a run write how far they are; the driver looks at it."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"done": 0, "total": 0, "speed": "", "lines": []}

    def at(self, done: int, total: int, speed: str = "") -> None:
        """Steps done of all steps; how fast, in words to put behind the title."""
        self.state |= {"done": done, "total": total, "speed": speed or self.state["speed"]}

    def line(self, text: str) -> None:
        """A line worth keeping, such as an epoch's result."""
        self.state["lines"].append(text)

    def read(self) -> dict[str, Any]:
        """The present state."""
        return self.state


@contextmanager
def watched(title: str) -> Iterator[Any]:
    """A board whose state is shown while the block runs. Yields the actor's handle."""
    board = Board.remote()  # type: ignore[attr-defined]  # ray.remote hides the class
    stop = threading.Event()
    thread = threading.Thread(target=_show, args=(board, title, stop), daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()


def _show(board: Any, title: str, stop: threading.Event) -> None:
    shown = 0
    with bar() as bars:
        task = bars.add_task(title, total=None)
        while True:
            last = stop.wait(POLL_S)
            state = ray.get(board.read.remote())
            told = {"description": title + state["speed"], "completed": state["done"]}
            bars.update(task, **told, total=state["total"] or None)
            for text in state["lines"][shown:]:
                bars.console.print(text)
            shown = len(state["lines"])
            if last:
                return
