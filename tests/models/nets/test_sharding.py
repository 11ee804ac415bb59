"""FSDP trains as DDP does, also where one rank has more texts than the other, or none."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.data.batch import Batch
from models.nets.fit import FitConfig
from models.nets.network import Network
from models.nets.sharding import evened, gathered, like

SCRIPT = Path(__file__).parent / "two_ranks.py"


def train(folder: Path, sharding: str) -> Any:
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), sharding, str(rank)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    return torch.load(folder / f"{sharding}.pt", weights_only=True)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The mean distance of weights. Where a gradient is zero but for rounding, as that of a key's
    bias is, Adam makes whole steps of it; so a few weights may be far apart."""
    pairs = [(one[name].double() - other[name]).abs().flatten() for name in other]
    return torch.cat(pairs).mean().item()


@pytest.mark.cluster
def test_shards_come_to_what_whole_weights_come_to(
    make_network: Callable[..., Network],
    make_batches: Callable[[int], list[Batch]],
    tmp_path: Path,
) -> None:
    batches = make_batches(12)[:8]
    bare = replace(
        batches[0],
        text_BT=torch.full_like(batches[0].text_BT, -1),
        texts=replace(batches[0].texts, tokens=(), masks=(), strings=()),
    )
    config = FitConfig(epochs=2, learning_rate=3e-3, precision="fp32", accumulate=2)
    given = make_network(), config, ([bare, *batches[1:4]], batches[4:])
    torch.save(given, tmp_path / "given.pt")
    expected, weights, _ = train(tmp_path, "ddp")
    found, sharded, cut = train(tmp_path, "fsdp")
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-4)
    assert apart(sharded, weights) < 1e-4
    torch.save(cut, tmp_path / "cut.pt")
    for sharding in ("fsdp", "ddp"):  # either goes on from what the other left
        (tmp_path / f"store-{sharding}").unlink(missing_ok=True)
        rest, resumed, _ = train(tmp_path, sharding)
        assert torch.allclose(torch.tensor(rest), torch.tensor(expected[1:]), atol=1e-4)
        assert apart(resumed, weights) < 1e-4


def test_whole_tensors_stay_as_they_are(make_network: Callable[..., Network], batch: Batch) -> None:
    network, one = make_network(), torch.ones(2)
    assert evened(batch, network) is batch
    assert gathered({"a": [one, (2, one)]})["a"][1][1] is one
    assert like(one, torch.zeros(2)) is one
