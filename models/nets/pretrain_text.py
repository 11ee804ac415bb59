"""Pretraining on a marketplace's own texts: an encoder that knows their words.

Source of going on from an encoder: Gururangan et al. 2020, "Don't stop pretraining".
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor

from models.data.schema import UserError
from models.nets.config import NewEncoder, TextPretraining
from models.nets.pretrain import descend
from models.nets.pretrain_halves import Halves, HalvesBatches
from models.nets.pretrain_masked import MaskedBatches, MaskedTokens
from models.nets.text import load_encoder, load_tokenizer, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

KEY = "pretrain.text.encoder"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_POSITIONS = 512
OBJECTIVES: Mapping[str, tuple[type[Halves | MaskedTokens], type[HalvesBatches | MaskedBatches]]]
OBJECTIVES = {"masked": (MaskedTokens, MaskedBatches), "halves": (Halves, HalvesBatches)}


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
    layers: int | None,
    max_tokens: int,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast, list[float]]":
    """An encoder that has learned from the texts what the objective asks; each epoch's mean loss.

    `layers`: the first ones of an encoder to go on from, which the network will have; None: all.
    The same for the same texts in the same order. Raises UserError where the encoder to go on from
    cannot be loaded or has too few layers, where it has no token to mask with, and where fewer than
    two texts can be cut.
    """
    torch.manual_seed(seed)
    start = config.start
    if isinstance(start, NewEncoder):
        tokenizer = new_tokenizer(texts, start.vocabulary)
        encoder = new_encoder(start, tokenizer)
    else:
        encoder = load_encoder(start, KEY)
        if layers is not None:
            shorten(encoder, layers)
        tokenizer = cast("PreTrainedTokenizerFast", load_tokenizer(start, KEY))
    if config.objective == "masked" and tokenizer.mask_token is None:
        raise UserError(f"{KEY} {start!r}: its tokenizer has no mask token")
    asked, batched = OBJECTIVES[config.objective]
    model = asked(encoder)
    batches = batched(texts, tokenizer, config, max_tokens, seed)

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = model(**{name: tensor.to(device) for name, tensor in batch.items()})
        return loss

    losses = descend(model, batches, batches.steps, loss_of, config, device, progress)
    return encoder.cpu(), tokenizer, losses
