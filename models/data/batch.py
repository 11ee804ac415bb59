"""Tensors of a set of users, validated when made on the CPU.

Shapes: B rows, F tabular, C categorical, G social, S events, T texts, U distinct texts, L tokens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.data.features import Features
from models.data.stats import Scale, Stats

# Texts encoded together have like lengths: a chunk's shortest has this share of the tokens of its
# longest, so that padding is less than half of the rest, about
EVENNESS = 0.85
CHUNK_TOKENS = 2048  # of a chunk, at most, or one text; what is made of more leaves the cache
# On a GPU a chunk costs the launch of every kernel, which takes as long as some padding:
# neighbours are one there up to so many places for tokens
GPU_CHUNK_PLACES = 65_536
EVENT_AGE_SCALE = 8.0  # of the logarithm of 1 + hours
TEXT_AGE_SCALE = 4.0  # of the logarithm of 1 + days


class Tokenizer(Protocol):
    """What a Hugging Face fast tokenizer does with a list of texts."""

    def __call__(
        self, texts: Sequence[str], *, truncation: bool, max_length: int
    ) -> dict[str, list[list[int]]]: ...


@dataclass(frozen=True)
class Texts:
    """The distinct texts of a batch, each once, in chunks of similar length.

    `tokens`, `masks`: one [U, L] int64 pair a chunk, U and L its own. `strings`: the texts in
    the chunks' order.
    """

    tokens: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    strings: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.masks)
        assert sum(len(t) for t in self.tokens) == len(self.strings)

    def where(self, chosen: Sequence[bool]) -> "Texts":
        """The chosen ones, in chunks as they were; at least one."""
        keep = torch.tensor(chosen).split([len(t) for t in self.tokens])
        some = [k for k in range(len(keep)) if keep[k].any()]
        return Texts(
            tokens=tuple(self.tokens[k][keep[k].to(self.tokens[k].device)] for k in some),
            masks=tuple(self.masks[k][keep[k].to(self.masks[k].device)] for k in some),
            strings=tuple(s for s, kept in zip(self.strings, chosen, strict=True) if kept),
        )

    def merged(self, places: int) -> "Texts":
        """The same texts in the same order; neighbouring chunks are one while it has at most so
        many places for tokens, beginning with the longest texts."""
        groups: list[list[int]] = []
        room = length = 0
        for k in reversed(range(len(self.tokens))):
            if not groups or len(self.tokens[k]) * length > room:
                groups.append([])
                room, length = places, self.tokens[k].shape[1]
            groups[-1].append(k)
            room -= len(self.tokens[k]) * length
        joined = [sorted(group) for group in reversed(groups)]
        return replace(
            self,
            tokens=tuple(_joined([self.tokens[k] for k in group]) for group in joined),
            masks=tuple(_joined([self.masks[k] for k in group]) for group in joined),
        )

    def to(self, device: torch.device) -> "Texts":
        """The same texts on a device, in chunks that suit it."""
        if device.type == "cpu":
            return self
        texts = self.merged(GPU_CHUNK_PLACES)
        return replace(
            texts,
            tokens=tuple(t.to(device, non_blocking=True) for t in texts.tokens),
            masks=tuple(m.to(device, non_blocking=True) for m in texts.masks),
        )


@dataclass(frozen=True)
class Batch:
    """The inputs of the network for B users as of a time.

    `user_B` int64, their keys, for messages only, `tabular_BF` float32 with `missing_BF` 1.0
    where nothing was known, `categorical_BC` int64, `social_BG` float32 with `tied_B` bool,
    `type_BS`, `category_BS`, `hour_BS`, `weekday_BS` int64 with 0 for padding on the right,
    `event_BSX` float32 (amount, gap, age scaled), `text_BT` int64 index into the distinct texts
    (−1: none), `text_age_BT` float32, `labels_BK` float32 with NaN where unknown.
    """

    user_B: Tensor
    tabular_BF: Tensor
    missing_BF: Tensor
    categorical_BC: Tensor
    social_BG: Tensor
    tied_B: Tensor
    type_BS: Tensor
    category_BS: Tensor
    hour_BS: Tensor
    weekday_BS: Tensor
    event_BSX: Tensor
    text_BT: Tensor
    text_age_BT: Tensor
    texts: Texts
    labels_BK: Tensor

    def __post_init__(self) -> None:
        rows = self.tabular_BF.shape[0]
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                assert value.shape[0] == rows, field.name
                assert value.dim() == len(field.name.rsplit("_", 1)[1]), field.name
        if self.user_B.device.type != "cpu":
            return  # values were checked before they went there; to ask again is to wait for it
        for tensor in (self.tabular_BF, self.social_BG, self.event_BSX, self.text_age_BT):
            assert bool(torch.isfinite(tensor).all())
        assert _max(self.text_BT) < max(1, len(self.texts.strings))

    def __len__(self) -> int:
        return self.tabular_BF.shape[0]

    @property
    def event_days(self) -> Tensor:
        """[B, S]: how many days ago the events happened."""
        return torch.expm1(self.event_BSX[..., 2] * EVENT_AGE_SCALE) / 24

    @property
    def text_days(self) -> Tensor:
        """[B, T]: how many days ago the texts were written."""
        return torch.expm1(self.text_age_BT * TEXT_AGE_SCALE)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in fields(self)
            if f.name != "texts"
        }
        return Batch(**moved, texts=self.texts.to(device))


def _joined(chunks: Sequence[Tensor]) -> Tensor:
    """Chunks [U, L] as one, zeros on the right."""
    length = max(chunk.shape[1] for chunk in chunks)
    return torch.cat([nn.functional.pad(one, (0, length - one.shape[1])) for one in chunks])


def _max(tensor: Tensor) -> int:
    return int(tensor.max()) if tensor.numel() else -1


def make_batch(
    features: Features,
    stats: Stats,
    tokenizer: Tokenizer,
    max_tokens: int,
    labels: Sequence[str] = (),
) -> Batch:
    """Tensors of feature rows. `labels` names label columns of the frame, nulls where unknown."""
    frame = features.frame
    tabular, missing = _scaled(frame, features.tabular, stats.tabular)
    social, untied = _scaled(frame, features.social, stats.social)
    length = _longest(frame["events_type"])
    numbers = np.stack(
        [
            np.nan_to_num(stats.amount.apply(_padded(frame["events_amount"], length))),
            np.log1p(_padded(frame["events_gap_h"], length)) / 4,
            np.log1p(_padded(frame["events_age_h"], length)) / EVENT_AGE_SCALE,
        ],
        axis=-1,
    )
    padding = _padded(frame["events_type"], length) == 0
    numbers[padding] = 0.0
    index, texts = _texts(frame["texts"], tokenizer, max_tokens)
    y = frame.select(labels).cast(pl.Float32).to_numpy() if labels else np.zeros((frame.height, 0))
    return Batch(
        user_B=_codes(frame["user_key"].to_numpy()),
        tabular_BF=_float(np.nan_to_num(tabular)),
        missing_BF=_float(missing),
        categorical_BC=_codes(
            frame.select(features.categorical).to_numpy()
            if features.categorical
            else np.zeros((frame.height, 0))
        ),
        social_BG=_float(np.nan_to_num(social)),
        tied_B=torch.from_numpy(~untied.astype(bool).all(axis=1) & (social.shape[1] > 0)),
        type_BS=_codes(_padded(frame["events_type"], length)),
        category_BS=_codes(_padded(frame["events_category"], length)),
        hour_BS=_codes(_padded(frame["events_hour"], length)),
        weekday_BS=_codes(_padded(frame["events_weekday"], length)),
        event_BSX=_float(numbers),
        text_BT=index,
        text_age_BT=_float(
            np.log1p(_padded(frame["texts_age_d"], index.shape[1])) / TEXT_AGE_SCALE
        ),
        texts=texts,
        labels_BK=_float(y),
    )


def _float(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))


def _codes(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.int64, order="C"))


def _scaled(
    frame: pl.DataFrame, columns: Sequence[str], scales: dict[str, Scale]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores with NaN where unknown, and 1.0 there."""
    values = np.full((frame.height, len(columns)), np.nan)
    for k, column in enumerate(columns):
        values[:, k] = scales[column].apply(frame[column].to_numpy().astype(np.float64))
    return values, np.isnan(values).astype(np.float64)


def _longest(lists: pl.Series) -> int:
    longest = lists.list.len().max()
    return max(1, longest if isinstance(longest, int) else 0)


def _padded(lists: pl.Series, length: int) -> NDArray[np.float64]:
    """[rows, length] of a list column, zeros on the right."""
    sizes = lists.list.len().cast(pl.Int64).to_numpy()
    result = np.zeros((len(lists), length))
    inside = np.arange(length) < sizes[:, None]
    flat = lists.explode(empty_as_null=False).cast(pl.Float64).to_numpy()
    result[inside] = flat
    return result


def _texts(lists: pl.Series, tokenizer: Tokenizer, max_tokens: int) -> tuple[Tensor, Texts]:
    """Index [B, T] into the distinct texts, which are sorted by length in tokens."""
    width = _longest(lists)
    sizes = lists.list.len().cast(pl.Int64).to_numpy()
    inside = np.arange(width) < sizes[:, None]
    index = np.full((len(lists), width), -1, dtype=np.int64)
    flat = lists.explode(empty_as_null=False)
    if flat.is_empty():
        return torch.from_numpy(index), Texts(tokens=(), masks=(), strings=())
    distinct = flat.unique().sort()
    texts, rank = make_texts(distinct.to_list(), tokenizer, max_tokens)
    index[inside] = rank[distinct.search_sorted(flat).to_numpy()]
    return torch.from_numpy(index), texts


def make_texts(
    distinct: Sequence[str], tokenizer: Tokenizer, max_tokens: int, evenness: float = EVENNESS
) -> tuple[Texts, NDArray[np.int64]]:
    """Distinct texts as chunks sorted by length, and the place of each in that order.

    `evenness`: the share of a chunk's longest text that its shortest has at least.
    """
    encoded = tokenizer(distinct, truncation=True, max_length=max_tokens)["input_ids"]
    order = np.argsort([len(ids) for ids in encoded], kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    ids = [encoded[i] for i in order]
    pairs = [pad(ids[chunk]) for chunk in _chunks([len(one) for one in ids], evenness)]
    texts = Texts(
        tokens=tuple(tokens for tokens, _ in pairs),
        masks=tuple(mask for _, mask in pairs),
        strings=tuple(distinct[i] for i in order),
    )
    return texts, rank


def _chunks(lengths: Sequence[int], evenness: float) -> list[slice]:
    """Rising lengths cut into runs of like ones."""
    chunks, end = [], len(lengths)
    while end > 0:
        longest = lengths[end - 1]
        most = max(1, CHUNK_TOKENS // longest)
        start = max(bisect_left(lengths, evenness * longest), end - most)
        chunks.append(slice(start, end))
        end = start
    return chunks[::-1]


def pad(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask [U, L] int64, L the longest."""
    length = max(len(one) for one in ids)
    tokens = np.zeros((len(ids), length), dtype=np.int64)
    mask = np.zeros((len(ids), length), dtype=np.int64)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = one
        mask[row, : len(one)] = 1
    return torch.from_numpy(tokens), torch.from_numpy(mask)
