"""The reader of words: it sees the order of tokens, and nothing of padding or of other texts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from models.data.batch import Batch, Tokenizer, pad
from models.nets.network import Network, NetworkConfig
from models.nets.text import TextTower, freeze, load_encoder
from models.nets.words import WordReader

TOKENS, WIDTH, TOLD = 40, 6, 5
TEXTS = st.lists(st.lists(st.integers(1, TOKENS - 1), min_size=1, max_size=12), min_size=1)


def reader() -> WordReader:
    torch.manual_seed(7)
    reader = WordReader(TOKENS, WIDTH, TOLD, dropout=0.2).eval()
    torch.nn.init.normal_(reader.embedding.weight)  # large enough to see a difference
    return reader


@given(TEXTS, st.integers(0, 9))
def test_padding_and_other_texts_say_nothing(texts: list[list[int]], more: int) -> None:
    read = reader()
    tokens, mask = pad(texts)
    padded = functional.pad(tokens, (0, more), value=3), functional.pad(mask, (0, more))
    with torch.no_grad():
        alone = torch.cat([read(*pad([text])) for text in texts])
        assert alone.shape == (len(texts), TOLD)
        assert torch.allclose(read(tokens, mask), alone, atol=1e-5)
        assert torch.allclose(read(*padded), alone, atol=1e-5)


def test_the_order_of_words_is_read() -> None:
    tokens, mask = pad([[5, 6, 7, 8, 9], [9, 6, 7, 8, 5], [5, 6, 7, 8, 9]])
    with torch.no_grad():
        there, back, again = reader()(tokens, mask)
    assert torch.equal(there, again)
    assert not torch.allclose(there, back, atol=1e-2)


def test_what_only_the_order_tells_is_learned_from_labels() -> None:
    """Twins of the same words: who denies what decides, and no bag of words can tell."""
    torch.manual_seed(3)
    deny, good, bad = 1, 2, 3
    texts, label = [], []
    for k in range(200):
        noise = torch.randint(4, TOKENS, (3,), generator=torch.Generator().manual_seed(k)).tolist()
        first, second = (good, bad) if k % 2 else (bad, good)
        texts.append([noise[0], deny, first, noise[1], second, noise[2]])
        label.append(float(k % 2))
    read, y = WordReader(TOKENS, 16, 1, dropout=0.0), torch.tensor(label)
    optimizer = torch.optim.AdamW(read.parameters(), 0.01)
    tokens, mask = pad(texts)
    for _ in range(60):
        logit = read(tokens[:100], mask[:100]).squeeze(1)
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(logit, y[:100]).backward()
        optimizer.step()
    with torch.no_grad():
        said = read(tokens[100:], mask[100:]).squeeze(1) > 0
    assert (said == (y[100:] > 0)).float().mean() > 0.95


def test_a_frozen_encoder_keeps_no_reader_from_learning(
    encoder_folder: Path, batch: Batch, take: Callable[[Batch, Sequence[int]], Batch]
) -> None:
    """Nor does a batch without texts: every rank has a gradient for every parameter."""
    encoder = load_encoder(str(encoder_folder))
    freeze(encoder, 1)
    tower = TextTower(encoder, WIDTH, dropout=0.0, words=8)
    tower.freeze(True)
    none = replace(batch.texts, tokens=(), masks=(), strings=())
    silent = take(batch, [r for r in range(len(batch)) if bool((batch.text_BT[r] < 0).all())])
    for some in (batch, replace(silent, texts=none)):
        tower.zero_grad(set_to_none=True)
        tower(tower.encode(some.texts), some)[0].sum().backward()
        learning = [p for p in tower.parameters() if p.requires_grad]
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learning)


def test_a_network_reads_words_beside_its_encoder(
    make_network: Callable[..., Network],
    network_config: NetworkConfig,
    batch: Batch,
    tokenizer: Tokenizer,
) -> None:
    text = network_config.text.model_copy(update={"words": 8})
    network = make_network(config=network_config.model_copy(update={"text": text})).eval()
    assert network.text.words is not None
    with torch.no_grad():
        before = network.text(network.text.encode(batch.texts), batch)[0]
        _, token, _ = tokenizer(["money"], truncation=True, max_length=16)["input_ids"][0]
        network.text.words.embedding.weight[token] += 10.0
        after = network.text(network.text.encode(batch.texts), batch)[0]
    has = [
        any("money" in batch.texts.strings[t] for t in row if t >= 0)
        for row in batch.text_BT.tolist()
    ]
    assert any(has) and not all(has)
    changed = (before - after).abs().amax(1) > 1e-6
    assert changed.tolist() == has
