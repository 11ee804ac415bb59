"""Encodings are kept by content, and not without end."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.nets import encodings
from models.nets.encodings import Encodings


class Encoder:
    """Encodes a letter as its place in the alphabet, the last first; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: list[str]) -> tuple[Sequence[str], Tensor]:
        self.asked.append(texts)
        return texts[::-1], torch.tensor([[float(ord(text) - ord("a"))] for text in texts[::-1]])


def test_what_is_kept_is_given_back_in_any_order_and_encoded_once() -> None:
    kept, encode = Encodings(), Encoder()
    kept.keep(["a", "b"], encode)
    kept.keep(["b", "c"], encode)
    kept.keep(["c", "a"], encode)
    assert encode.asked == [["a", "b"], ["c"]]
    assert kept.of(["b", "a", "b"]).tolist() == [[1.0], [0.0], [1.0]]


def test_the_oldest_that_are_not_wanted_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "MOST", 3)
    kept, encode = Encodings(), Encoder()
    kept.keep(["a", "b", "c"], encode)  # kept as c, b, a
    kept.keep(["c", "d"], encode)  # b goes, though c is older
    assert kept.of(["d", "c", "a"]).tolist() == [[3.0], [2.0], [0.0]]
    kept.keep(["b"], encode)
    assert encode.asked == [["a", "b", "c"], ["d"], ["b"]]


def test_a_question_for_more_than_are_kept_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "MOST", 2)
    kept, encode = Encodings(), Encoder()
    kept.keep(["a", "z"], encode)
    kept.keep(["a", "b", "c", "d"], encode)
    assert encode.asked == [["a", "z"], ["b", "c", "d"]]
    assert kept.of(["a", "b", "c", "d"]).tolist() == [[0.0], [1.0], [2.0], [3.0]]
