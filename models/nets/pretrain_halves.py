"""Two halves of one text belong together: an encoder that says what a text says, without labels.

Of all the second halves in a batch an encoder is to find that of each first one, and the other way
round. Unlike filling in masked words, this trains the very mean over tokens that a text tower
reads. Source: Giorgi et al. 2021, "DeCLUTR: Deep contrastive learning for unsupervised textual
representations".

Shapes: U texts, P = 2 U halves, L tokens, E width of the encoder.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.data.batch import pad
from models.data.schema import UserError
from models.nets.config import TextPretraining
from models.nets.pretrain import contrast
from models.nets.text import mean_encoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SHORTEST = 8  # tokens of a text that is cut
PARTS = 4  # halves of like length are encoded together, in so many parts of a batch


class Halves(nn.Module):
    """An encoder that is asked which halves belong together."""

    def __init__(self, encoder: "PreTrainedModel") -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean cross-entropy; [P, L] each, the second halves after all of the first."""
        length_P = attention_mask.sum(1)
        order_P = length_P.argsort(stable=True)
        parts = []
        for part in order_P.chunk(PARTS):
            longest = int(length_P[part].max())
            tokens, mask = input_ids[part, :longest], attention_mask[part, :longest]
            parts.append(mean_encoding(self.encoder, tokens, mask))
        return contrast(*torch.cat(parts)[order_P.argsort()].chunk(2))


class HalvesBatches:
    """Texts of similar length together, with others and cut elsewhere every epoch.

    A batch has two texts at least. Raises UserError where there are not two that are long enough.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: "PreTrainedTokenizerFast",
        config: TextPretraining,
        max_tokens: int,
        seed: int,
    ) -> None:
        room = max_tokens - tokenizer.num_special_tokens_to_add()
        if room < SHORTEST:
            raise UserError(
                f"features.max_tokens: {max_tokens}, of which {room} are of a text; the objective "
                f"halves expects {SHORTEST} at least"
            )
        encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        framed = [_framed(ids, special) for ids in encoded]
        self.long = [one for one in framed if len(one[1]) >= SHORTEST]
        if len(self.long) < 2:
            raise UserError(
                f"pretrain.text.objective: halves: {len(self.long)} of {len(texts)} texts have "
                f"{SHORTEST} tokens or more; expected two at least, or the objective masked"
            )
        # of even sizes, rather too large: the last few texts would have little to be told from
        self.steps = max(1, len(self.long) // config.batch)
        self.draws = torch.Generator().manual_seed(seed)

    def __call__(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """`input_ids` and `attention_mask`, [P, L] each."""
        order = torch.randperm(len(self.long), generator=self.draws).tolist()
        order.sort(key=lambda place: len(self.long[place][1]))
        for chunk in torch.randperm(self.steps, generator=self.draws).tolist():
            first, end = (len(order) * k // self.steps for k in (chunk, chunk + 1))
            halves = [self._cut(*self.long[place]) for place in order[first:end]]
            tokens, mask = pad([first for first, _ in halves] + [second for _, second in halves])
            yield {"input_ids": tokens, "attention_mask": mask}

    def _cut(
        self, head: list[int], body: list[int], tail: list[int]
    ) -> tuple[list[int], list[int]]:
        """Both halves of a text, in either order; the cut is in its middle third."""
        third, turned = len(body) // 3, torch.rand((), generator=self.draws) < 1 / 2
        at = int(torch.randint(third, len(body) - third + 1, (), generator=self.draws))
        halves = [*head, *body[:at], *tail], [*head, *body[at:], *tail]
        return halves[::-1] if turned else halves


def _framed(ids: list[int], special: set[int]) -> tuple[list[int], list[int], list[int]]:
    """What a tokenizer puts before a text, the text, what it puts behind it."""
    own = [place for place, token in enumerate(ids) if token not in special]
    if not own:
        return ids, [], []
    return ids[: own[0]], ids[own[0] : own[-1] + 1], ids[own[-1] + 1 :]
