"""Pretraining on a marketplace's own texts, with masked-language modelling: an encoder that knows
their words. The other objective is in `pretrain_halves`.

Source: Devlin et al. 2019, "BERT: Pre-training of deep bidirectional transformers"; going on from
an encoder: Gururangan et al. 2020, "Don't stop pretraining".

Shapes: U texts, L tokens, M masked tokens, E width of the encoder, V words of the vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor, nn
from torch.nn import functional

from models.data.schema import UserError
from models.nets.config import NewEncoder, TextPretraining
from models.nets.pretrain import descend
from models.nets.pretrain_halves import Halves, HalvesBatches
from models.nets.text import load_encoder, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

KEY = "pretrain.text.encoder"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_POSITIONS = 512
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
        hidden_ULE = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        hidden_ME = self.transform(hidden_ULE[asked_UL])
        scores_MV = functional.linear(hidden_ME, self.words.weight, self.bias_V)
        loss = functional.cross_entropy(scores_MV.float(), labels[asked_UL], reduction="sum")
        return loss / asked_UL.sum().clamp(min=1)


def new_tokenizer(texts: Sequence[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """A WordPiece tokenizer with at most so many words, trained on the texts; lower case.

    Chinese characters are words of their own, as in every BERT.
    """
    from transformers import BertTokenizer

    bert = BertTokenizer().backend_tokenizer
    words = Counter(
        word
        for text in texts
        for word, _ in bert.pre_tokenizer.pre_tokenize_str(bert.normalizer.normalize_str(text))
    )
    letters: Counter[str] = Counter()
    inner = set()
    for word, count in words.items():
        letters.update(dict.fromkeys(word, count))
        inner.update(word[1:])
    # given in order: by itself the trainer numbers them, and so breaks ties, as its hash table does
    first = list(SPECIAL)
    for letter in sorted(letters, key=lambda one: (-letters[one], one)):
        forms = [letter, f"##{letter}"] if letter in inner else [letter]
        if len(first) + len(forms) > vocabulary:
            break
        first += forms
    trainer = WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=first, limit_alphabet=0, show_progress=False
    )
    bert.train_from_iterator(texts, trainer)
    return cast("PreTrainedTokenizerFast", BertTokenizer(vocab=bert.get_vocab()))


def new_encoder(config: NewEncoder, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """An untrained BERT for a tokenizer."""
    from transformers import BertConfig, BertModel

    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(bert)


def pretrain_text(
    texts: Sequence[str],
    config: TextPretraining,
    max_tokens: int,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast, list[float]]":
    """An encoder that has learned from the texts what the objective asks; each epoch's mean loss.

    The same for the same texts in the same order. Raises UserError where the encoder to go on from
    cannot be loaded, where it has no token to mask with, and where no texts can be cut.
    """
    torch.manual_seed(seed)
    start = config.start
    if isinstance(start, NewEncoder):
        tokenizer = new_tokenizer(texts, start.vocabulary)
        encoder = new_encoder(start, tokenizer)
    else:
        encoder = load_encoder(start, KEY)
        tokenizer = cast("PreTrainedTokenizerFast", load_tokenizer(start, KEY))
    if config.objective == "masked" and tokenizer.mask_token is None:
        raise UserError(f"{KEY} {start!r}: its tokenizer has no mask token")
    told = texts, tokenizer, config, max_tokens, seed
    model: Halves | MaskedTokens
    batches: HalvesBatches | _Batches
    if config.objective == "halves":
        model, batches = Halves(encoder), HalvesBatches(*told)
    else:
        model, batches = MaskedTokens(encoder), _Batches(*told)

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = model(**{name: tensor.to(device) for name, tensor in batch.items()})
        return loss

    losses = descend(model, batches, batches.steps, loss_of, config, device, progress)
    return encoder.cpu(), tokenizer, losses


class _Batches:
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
