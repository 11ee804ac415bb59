"""Units of work on Ray: results in order, faults of the user as they are."""

import os
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayTaskError

from models.data.schema import UserError
from ray_jobs.parallel import over, over_actors, result_of, threads_of, total


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


@pytest.mark.parametrize(
    ("own", "others", "workers", "threads"),
    [
        (4, [], 2, 8),  # alone on the machine: its cores, whatever Ray counts as CPUs
        (4, [], 32, 1),
        (16, [16, 16, 16], 16, 4),
        (16, [16, 16, 16], 2, 16),
        (16, [16, 0, 16, 16], 16, 4),  # a head that runs nothing
        (16, [4, 4], 6, 4),  # most of them, where most CPUs are
        (4, [16, 64], 6, 8),
    ],
)
def test_threads_follow_from_the_actors_of_a_node(
    monkeypatch: pytest.MonkeyPatch, own: int, others: list[int], workers: int, threads: int
) -> None:
    nodes = [
        {"NodeID": str(at), "Alive": True, "Resources": {"CPU": float(cpus)} if cpus else {}}
        for at, cpus in enumerate([own, *others])
    ]
    gone = {"NodeID": "gone", "Alive": False, "Resources": {}}
    monkeypatch.setattr(ray, "nodes", lambda: [gone, *nodes])
    here = SimpleNamespace(get_node_id=lambda: "0")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert threads_of(workers) == threads


@pytest.mark.usefixtures("ray_cluster")
def test_threads_of_an_actor_on_this_machine() -> None:
    cores = os.cpu_count() or 1
    assert over_actors([2], Threads, "threads", 1) == [max(1, cores // 2)]


class Threads:
    def __call__(self, workers: int) -> int:
        return threads_of(workers)
