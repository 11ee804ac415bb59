"""Encodings are kept by content, and not without end."""

import pytest
import torch

from models.nets import encodings
from models.nets.encodings import Encodings


def test_what_was_added_is_given_back_in_any_order() -> None:
    kept = Encodings()
    assert kept.missing(["a", "b"]) == ["a", "b"]
    kept.add(["a", "b"], torch.tensor([[1.0], [2.0]]))
    assert kept.missing(["b", "c"]) == ["c"]
    assert kept.of(["b", "a", "b"]).tolist() == [[2.0], [1.0], [2.0]]


def test_when_too_many_are_kept_all_that_are_wanted_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encodings, "MOST", 2)
    kept = Encodings()
    kept.add(["a", "b"], torch.tensor([[1.0], [2.0]]))
    assert kept.missing(["a", "b"]) == []
    assert kept.missing(["b", "c"]) == ["b", "c"]
    kept.add(["b", "c"], torch.tensor([[2.0], [3.0]]))
    assert kept.of(["c", "b"]).tolist() == [[3.0], [2.0]]
