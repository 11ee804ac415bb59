"""A function over many units of work as Ray Data tasks, one block a unit, results in order."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray.data

from models.data.schema import UserError

U = TypeVar("U")
R = TypeVar("R")


def over(units: Sequence[U], job: Callable[[U], R], title: str) -> list[R]:
    """`job(unit)` of each unit, on the cluster; `job` and `R` can be pickled and are small.

    Raises the UserError of the first unit, in order, that raised one.
    """
    if not units:
        return []

    def task(row: dict[str, Any]) -> dict[str, Any]:
        try:
            done: R | UserError = job(pickle.loads(row["unit"]))
        except UserError as error:
            done = error
        return {"at": row["at"], "done": pickle.dumps(done)}

    # pickled, since Arrow would guess at nested types
    rows = [{"at": at, "unit": pickle.dumps(unit)} for at, unit in enumerate(units)]
    work = ray.data.from_items(rows, override_num_blocks=len(rows))
    work.set_name(title)
    # Ray Data would hold tasks back until it knows how large their results are: they are tiny
    work.context.op_resource_reservation_enabled = False
    found = sorted(work.map(task).take_all(), key=lambda row: int(row["at"]))
    results = [pickle.loads(row["done"]) for row in found]
    for result in results:
        if isinstance(result, UserError):
            raise result
    return results
