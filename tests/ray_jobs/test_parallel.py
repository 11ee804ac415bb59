"""Units of work on Ray: results in order, faults of the user as they are."""

import pytest

from models.data.schema import UserError
from ray_jobs.parallel import over


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
