"""The columns of an answer, and the tasks that may stand among them."""

import pytest

from models.data.schema import UserError
from models.scoring.answer import check_tasks


@pytest.mark.parametrize("name", ["default", "spend_30d", "late-30", "Y", "90d"])
def test_names_that_a_task_may_have(name: str) -> None:
    check_tasks([name])


@pytest.mark.parametrize("name", ["a.b", "a b", "", "y_default", "a/b", "default\n"])
def test_a_task_is_named_by_a_plain_word(name: str) -> None:
    with pytest.raises(UserError, match="expected a name of letters, digits, '_' and '-'"):
        check_tasks(["default", name])


@pytest.mark.parametrize("name", ["row", "as_of", "score", "weights", "reasons", "run_id"])
def test_a_task_may_not_take_the_name_of_another_column(name: str) -> None:
    with pytest.raises(UserError, match=f"tasks.{name}: the name of another column of the answer"):
        check_tasks(["default", name])
