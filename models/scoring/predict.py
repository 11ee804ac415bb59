"""From feature rows to the network's raw outputs: one way for calibration, backfill and serving.

Shapes: B rows, U distinct texts, E width of the text encoder, M modalities, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.batch import EVENNESS, Batch, Texts, Tokenizer, make_batch, make_texts
from models.data.features import Features
from models.data.stats import Stats
from models.nets.config import ScoringPrecision
from models.nets.encodings import Encodings
from models.nets.heads import expected_amount
from models.nets.int8 import to_int8
from models.nets.network import Network

ROWS = 512  # rows of a batch; bounds memory


@dataclass(frozen=True)
class Encoded:
    """Rows, their batch, its towers' vectors [B, M, D], which modalities are there [B, M]."""

    frame: pl.DataFrame
    batch: Batch
    vectors_BMD: Tensor
    known_BM: Tensor


class Predictor:
    """A network in evaluation mode with all that turns feature rows into its inputs.

    Each distinct text is encoded once and kept by its content.

    In int8 the network's encoder is changed in place, but for its weights. A text shares a chunk
    with texts of its own length alone: beside a longer one its attention would end in other last
    bits, some of which integers round to their neighbours.
    """

    def __init__(
        self,
        network: Network,
        stats: Stats,
        tokenizer: Tokenizer,
        max_tokens: int,
        precision: ScoringPrecision = "fp32",
    ) -> None:
        self.evenness = EVENNESS
        if precision == "int8":
            to_int8(network.text.encoder)
            self.evenness = 1.0
        self.network = network.eval()
        self.stats = stats
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._encodings = Encodings()

    @torch.inference_mode()
    def encode(self, features: Features) -> Iterator[Encoded]:
        """The towers' vectors, `ROWS` rows at a time, in order."""
        distinct = features.frame["texts"].explode(empty_as_null=False).unique().sort().to_list()
        self._encodings.keep(distinct, self._encode_texts)
        for start in range(0, features.frame.height, ROWS):
            part = replace(features, frame=features.frame.slice(start, ROWS))
            batch = make_batch(part, self.stats, self.tokenizer, self.max_tokens)
            vectors_BMD, known_BM = self.network.towers(batch, self._lookup(batch.texts))
            yield Encoded(part.frame, batch, vectors_BMD, known_BM)

    @torch.inference_mode()
    def raw(self, features: Features) -> dict[str, NDArray[np.float64]]:
        """Task → [rows] logit, or expected amount, before calibration."""
        parts = [self.network.fuse(e.vectors_BMD, e.known_BM).tasks for e in self.encode(features)]
        names = self.network.heads.tasks
        none = np.empty(0)  # so that no rows give no values
        return {n: np.concatenate([none, *(self.value(n, p[n]) for p in parts)]) for n in names}

    def value(self, task: str, output: Tensor) -> NDArray[np.float64]:
        """The raw value of a task's output: a logit as it is, an amount as its expectation."""
        if self.network.heads.tasks[task].kind == "binary":
            return output.double().numpy()
        return expected_amount(output, self.network.heads.targets[task]).numpy()

    def _encode_texts(self, new: list[str]) -> tuple[Sequence[str], Tensor]:
        texts, _ = make_texts(new, self.tokenizer, self.max_tokens, self.evenness)
        return texts.strings, self.network.text.encode(texts)

    def _lookup(self, texts: Texts) -> Tensor:
        if not texts.strings:
            return self.network.text.encode(texts)
        return self._encodings.of(texts.strings)
