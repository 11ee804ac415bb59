"""Encodings of texts, kept by content. Shapes: U distinct texts, E width of the encoder."""

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

MOST = 131_072  # encodings kept, unless one question asks for more; 200 MB at a width of 384
Encode = Callable[[list[str]], tuple[Sequence[str], Tensor]]


class Encodings:
    """Each text's encoding, for as long as the encoder that made it does not change."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, texts: Sequence[str], encode: Encode) -> None:
        """Encode those of the texts that are not kept yet. To make room, the oldest others go.

        `encode`: texts → the same, in any order, and their encodings [U, E].
        """
        new = [text for text in texts if text not in self._kept]
        if not new:
            return
        if len(self._kept) + len(new) > MOST:
            own = set(texts)
            others = (text for text in self._kept if text not in own)
            for text in list(islice(others, len(new) + MOST // 8)):  # and room for the next ones
                del self._kept[text]
        self._kept.update(zip(*encode(new), strict=True))

    def of(self, texts: Sequence[str]) -> Tensor:
        """[U, E] of texts that are kept, at least one."""
        return torch.stack([self._kept[text] for text in texts])
