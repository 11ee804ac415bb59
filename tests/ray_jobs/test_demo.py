"""What a demo is given before Ray starts."""

from pathlib import Path

import pytest

from models.data.schema import UserError
from ray_jobs import config as configs
from ray_jobs import demo
from ray_jobs.secret import read_secret


@pytest.mark.parametrize(("name", "same"), [("demo", True), ("online_retail", False)])
def test_keys_of_simulated_users_are_the_same_every_time_and_no_others(
    name: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [configs.load(name, [f"secret_file={tmp_path / part}"]) for part in "ab"]
    for config in made:
        monkeypatch.setenv(config.serve.token_env, "")
        demo.prepare(config)
    one, other = (read_secret(config) for config in made)
    assert (one == other) == same


def test_the_secret_of_simulated_users_is_none_for_others(tmp_path: Path) -> None:
    config = configs.load("demo", [f"secret_file={tmp_path / 'secret'}"])
    demo.prepare(config)
    assert read_secret(config)
    with pytest.raises(UserError, match="known to all"):
        read_secret(config.model_copy(update={"simulate": None}))
