"""Checkpoints: what was saved comes back; one of another network is refused in one line."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from models.data.schema import UserError
from models.nets.fit import Loop
from ray_jobs import checkpoint


class Position:
    """What a checkpoint needs of a loop: a network, and where it is."""

    def __init__(self, network: nn.Module, step: int = 0) -> None:
        self.network, self.step = network, step

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def own_state(self) -> dict[str, Any]:
        return {"random": torch.get_rng_state()}

    def resume(self, state: dict[str, Any], own: dict[str, Any] | None) -> None:
        self.step = state["step"]
        if own is not None:
            torch.set_rng_state(own["random"])


def at(network: nn.Module, step: int = 0) -> Loop:
    return cast(Loop, Position(network, step))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    before = at(nn.Linear(3, 2), step=7)
    checkpoint.save(tmp_path, before, [{"epoch": 0}])
    drawn = torch.rand(4)
    after = at(nn.Linear(3, 2))
    assert checkpoint.restore(tmp_path, after) == [{"epoch": 0}]
    assert after.step == 7 and torch.equal(torch.rand(4), drawn)
    assert torch.equal(
        cast(nn.Linear, after.network).weight, cast(nn.Linear, before.network).weight
    )
    checkpoint.restore(tmp_path, after, rank=1)  # which was not there
    assert not torch.equal(torch.rand(4), drawn)


@pytest.mark.parametrize(
    "other", [nn.Linear(4, 2), nn.Linear(3, 2, bias=False), nn.Bilinear(3, 3, 2)]
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, other: nn.Module) -> None:
    checkpoint.save(tmp_path, at(nn.Linear(3, 2)), [])
    with pytest.raises(UserError, match=rf"^train: the checkpoint {tmp_path.name} is of another"):
        checkpoint.restore(tmp_path, at(other))
