"""Units of work on Ray: results in order, faults of the user as they are."""

import pytest
import ray
from ray.exceptions import RayTaskError

from models.data.schema import UserError
from ray_jobs.parallel import over, over_actors, result_of, total


def square(n: int) -> int:
    if n > 3:
        raise UserError(f"{n} is too large")
    return n * n


@pytest.mark.usefixtures("ray_cluster")
def test_over() -> None:
    assert over([3, 1, 2], square, "squares") == [9, 1, 4]
    with pytest.raises(UserError, match="5 is too large"):
        over([1, 5, 4], square, "squares")


def test_nothing_to_do_needs_no_cluster() -> None:
    assert over([], square, "squares") == []


class Squares:
    """A job that is costly to make."""

    def __call__(self, n: int) -> int:
        return square(n)


@pytest.mark.usefixtures("ray_cluster")
def test_over_actors() -> None:
    assert over_actors([3, 1, 2], Squares, "squares", 2) == [9, 1, 4]
    with pytest.raises(UserError, match="5 is too large"):
        over_actors([1, 5], Squares, "squares", 1)


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_gives_its_result_or_the_fault_of_the_user() -> None:
    task = ray.remote(square)
    assert result_of(task.remote(2)) == 4
    with pytest.raises(UserError, match=r"^5 is too large$"):
        result_of(task.remote(5))
    with pytest.raises(RayTaskError, match="TypeError"):
        result_of(task.remote("5"))


def test_total() -> None:
    assert total([{"a": 1, "b": 0}, {"a": 2, "b": 5}]) == {"a": 3, "b": 5}
