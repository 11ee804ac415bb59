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


def test_the_oldest_that_are_not_wanted_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "MOST", 3)
    kept = Encodings()
    kept.add(["a", "b", "c"], torch.tensor([[1.0], [2.0], [3.0]]))
    assert kept.missing(["a", "d"]) == ["d"]  # b goes, though a is older
    kept.add(["d"], torch.tensor([[4.0]]))
    assert kept.of(["d", "a", "c"]).tolist() == [[4.0], [1.0], [3.0]]
    assert kept.missing(["b"]) == ["b"]


def test_a_question_for_more_than_are_kept_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "MOST", 2)
    kept = Encodings()
    kept.add(["a", "z"], torch.tensor([[1.0], [9.0]]))
    assert kept.missing("abcd") == ["b", "c", "d"]
    kept.add("bcd", torch.tensor([[2.0], [3.0], [4.0]]))
    assert kept.of("abcd").tolist() == [[1.0], [2.0], [3.0], [4.0]]
