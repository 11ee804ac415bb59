"""A process alone is its only rank; several are tested where they train, in `test_sharding.py`."""

import torch

from models.nets.ranks import of_all_ranks, sum_of_all_ranks


def test_a_process_alone_hears_itself() -> None:
    assert of_all_ranks("fp32") == ["fp32"]
    own = torch.tensor([1.0, 2.0])
    total = sum_of_all_ranks(own)
    assert total.tolist() == [1.0, 2.0]
    total += 1  # it may be changed without changing what was said
    assert own.tolist() == [1.0, 2.0]
