"""Masked-language modelling: an encoder that fills in the words that were taken from a text.

Source: Devlin et al. 2019, "BERT: Pre-training of deep bidirectional transformers".

Shapes: U texts, L tokens, M masked tokens, E width of the encoder, V words of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nets.config import TextPretraining
from models.nets.text import hidden_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

IGNORED = -100  # the label of a token that is not masked


class MaskedTokens(nn.Module):
    """An encoder that is asked for the tokens that were masked, and for no others.

    The scores of words are products with the encoder's own word embeddings.
    """

    def __init__(self, encoder: "PreTrainedModel") -> None:
        super().__init__()
        self.encoder = encoder
        words = encoder.get_input_embeddings()
        assert isinstance(words, nn.Embedding)
        self.words = words
        width = words.embedding_dim
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias_V = nn.Parameter(torch.zeros(words.num_embeddings))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of the masked tokens; 0 where none is. [U, L] each."""
        asked_UL = labels != IGNORED
        hidden_ULE = hidden_states(self.encoder, input_ids, attention_mask)
        hidden_ME = self.transform(hidden_ULE[asked_UL])
        scores_MV = functional.linear(hidden_ME, self.words.weight, self.bias_V)
        loss = functional.cross_entropy(scores_MV.float(), labels[asked_UL], reduction="sum")
        return loss / asked_UL.sum().clamp(min=1)


class MaskedBatches:
    """Texts of similar length together, other tokens masked and another order every epoch."""

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: "PreTrainedTokenizerFast",
        config: TextPretraining,
        max_tokens: int,
        seed: int,
    ) -> None:
        from transformers import DataCollatorForLanguageModeling

        encoded = tokenizer(
            list(texts), truncation=True, max_length=max_tokens, return_special_tokens_mask=True
        )
        parts = {name: encoded[name] for name in ("input_ids", "special_tokens_mask")}
        examples = [dict(zip(parts, one, strict=True)) for one in zip(*parts.values(), strict=True)]
        examples.sort(key=lambda one: len(one["input_ids"]))
        self.chunks = [
            examples[i : i + config.batch] for i in range(0, len(examples), config.batch)
        ]
        self.steps = len(self.chunks)
        self.order = torch.Generator().manual_seed(seed)
        self.masking = DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=config.masked, pad_to_multiple_of=8, seed=seed
        )

    def __call__(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """`input_ids`, `attention_mask` and `labels`, [U, L] each."""
        for chunk in torch.randperm(self.steps, generator=self.order).tolist():
            yield self.masking(self.chunks[chunk])
