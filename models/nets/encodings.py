"""Encodings of texts, kept by content. Shapes: U distinct texts, E width of the encoder."""

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

MOST = 131_072  # encodings kept, unless one question asks for more; 200 MB at a width of 384


class Encodings:
    """Each text's encoding, for as long as the encoder that made it does not change."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Which of the texts are still to be encoded. To make room, the oldest others go."""
        asked = list(texts)
        new = [text for text in asked if text not in self._kept]
        if new and len(self._kept) + len(new) > MOST:
            own = set(asked)
            others = (text for text in self._kept if text not in own)
            for text in list(islice(others, len(new) + MOST // 8)):  # and room for the next ones
                del self._kept[text]
        return new

    def add(self, texts: Sequence[str], encoded_UE: Tensor) -> None:
        """Keep the encodings of these texts, in their order."""
        self._kept.update(zip(texts, encoded_UE, strict=True))

    def of(self, texts: Sequence[str]) -> Tensor:
        """[U, E] of texts that were added, at least one."""
        return torch.stack([self._kept[text] for text in texts])
