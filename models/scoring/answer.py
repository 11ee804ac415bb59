"""The columns of an answer. Needs no torch: the configuration refuses tasks of these names."""

import re
from collections.abc import Iterable

from models.data.features import BASE
from models.data.schema import UserError

BEFORE = ("row", *BASE)
AFTER = ("weights", "reasons", "score", "grade", "decision", "model_sha256")
STAMPS = ("run_id", "as_of_date")  # beside them in the `scores` table
_NAME = re.compile(r"(?!y_)[A-Za-z0-9_-]+")  # outcomes are columns `y_<task>`


def columns(tasks: Iterable[str]) -> list[str]:
    """An answer's columns in order, the tasks' in the middle."""
    return [*BEFORE, *tasks, *AFTER]


def check_tasks(tasks: Iterable[str]) -> None:
    """Raise UserError for a task that cannot be a column beside the others."""
    for name in tasks:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"tasks.{name}: expected a name of letters, digits, '_' and '-', not beginning y_"
            )
        if name in (*columns(()), *STAMPS):
            raise UserError(f"tasks.{name}: the name of another column of the answer; rename it")
