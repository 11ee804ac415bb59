"""Pretraining on texts: what comes of it, and that it is the same again."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from models.data.schema import UserError
from models.nets.pretrain_text import (
    SPECIAL,
    NewEncoder,
    TextPretraining,
    new_tokenizer,
    pretrain_text,
)
from models.nets.text import load_encoder, load_tokenizer, unknown_share

CPU = torch.device("cpu")
SMALL = NewEncoder(vocabulary=200, layers=1, width=16, heads=2)
ENGLISH = [f"{who} {what} late again" for who in ("money", "pay") for what in ("is", "was", "came")]
CHINESE = [f"{who}{what}没有到账" for who in ("退款", "工资") for what in ("一直", "还是", "又")]


def pretrained(texts: list[str], config: TextPretraining) -> tuple[object, ...]:
    return pretrain_text(texts, config, None, 16, 5, CPU, lambda *_: None)


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE])
def test_a_new_encoder_learns_the_texts_it_is_given(texts: list[str], tmp_path: Path) -> None:
    """It is a folder as `network.text.encoder` wants it, and knows every word."""
    config = TextPretraining(new=SMALL, epochs=40, batch=4, learning_rate=5e-3, masked=0.3)
    encoder, tokenizer, losses = pretrain_text(texts, config, None, 16, 5, CPU, lambda *_: None)
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(str(tmp_path))
    again = load_encoder(str(tmp_path))
    for name, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert unknown_share(load_tokenizer(str(tmp_path)), texts, 16) == 0


def test_the_same_texts_give_the_same_encoder() -> None:
    config = TextPretraining(new=SMALL, epochs=2, batch=4, precision="fp32")
    first, second = (
        pretrain_text(ENGLISH, config, None, 16, 5, CPU, lambda *_: None) for _ in range(2)
    )
    assert first[1].get_vocab() == second[1].get_vocab()
    assert first[2] == second[2]
    for name, value in first[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[name], value), name


def test_a_tokenizer_is_the_same_each_time_and_within_its_bounds() -> None:
    texts = [f"{a}{b} {b}{a}s {b} 退款{a}" for a in "abcdefgh" for b in ("pay", "late", "again")]
    there, tokenizer = new_tokenizer(texts, 100).get_vocab(), new_tokenizer(texts, 100)
    assert tokenizer.get_vocab() == there
    assert 60 < len(there) <= 100
    assert sorted(there.values()) == list(range(len(there)))
    assert [there[word] for word in SPECIAL] == [0, 1, 2, 3, 4]
    assert tokenizer.tokenize("Pay again 退款") == ["pay", "again", "退", "款"]
    assert tokenizer.decode(tokenizer("pay late")["input_ids"]) == "[CLS] pay late [SEP]"


def test_more_letters_than_words_are_asked_for_give_no_larger_vocabulary() -> None:
    texts = ["".join(chr(0x4E00 + k) for k in range(300))]
    assert 98 <= len(new_tokenizer(texts, 100)) <= 100


def test_it_goes_on_from_an_encoder(encoder_folder: Path) -> None:
    """With that one's words and sizes; its weights move, its unused pooler stays."""
    texts = ["money is short again", "good thanks", "not good not fast late"] * 4
    config = TextPretraining(encoder=str(encoder_folder), epochs=2, batch=4)
    before = load_encoder(str(encoder_folder)).state_dict()
    encoder, tokenizer, losses = pretrain_text(texts, config, None, 16, 5, CPU, lambda *_: None)
    assert tokenizer.get_vocab() == load_tokenizer(str(encoder_folder)).get_vocab()
    assert all(torch.isfinite(torch.tensor(losses)))
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert not [name for name in moved if "pooler" in name]
    assert any("word_embeddings" in name for name in moved)
    assert any("layer.1" in name for name in moved)


def test_a_tokenizer_without_a_mask_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    load_encoder(str(encoder_folder)).save_pretrained(tmp_path)
    source = load_tokenizer(str(encoder_folder))
    assert isinstance(source, PreTrainedTokenizerFast)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=source.backend_tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    )
    bare.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="no mask token"):
        pretrained(ENGLISH, TextPretraining(encoder=str(tmp_path)))


@pytest.mark.parametrize(
    "bad",
    [
        {"new": {"width": 30, "heads": 4}},
        {"new": {"vocabulary": 5}},
        {"new": {}, "encoder": "minilm"},
        {"masked": 1.0},
        {"epochs": 0},
    ],
)
def test_an_impossible_configuration_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TextPretraining.model_validate(bad)


def test_of_an_encoder_the_layers_that_the_network_will_have(encoder_folder: Path) -> None:
    """Or the mean that was trained would not be the one that is read."""
    config = TextPretraining(encoder=str(encoder_folder), epochs=1)
    encoder, *_ = pretrain_text(ENGLISH, config, 1, 16, 5, CPU, lambda *_: None)
    assert encoder.config.num_hidden_layers == 1
    with pytest.raises(UserError, match="layers: 9, of an encoder of 2"):
        pretrain_text(ENGLISH, config, 9, 16, 5, CPU, lambda *_: None)
