"""Halves of texts: what is cut, what stays whole, and that an encoder learns what texts share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from models.data.batch import pad
from models.data.schema import UserError
from models.nets.config import NewEncoder, TextPretraining
from models.nets.pretrain_halves import SHORTEST, Halves, HalvesBatches
from models.nets.pretrain_text import new_encoder, new_tokenizer, pretrain_text
from models.nets.text import mean_encoding

TOPICS = (
    ["red", "blue", "green", "white", "black", "pink"],
    ["one", "two", "three", "four", "five", "six"],
)
NEW = NewEncoder(vocabulary=100, layers=1, width=16, heads=2)
CONFIG = TextPretraining(
    new=NEW, objective="halves", batch=16, epochs=12, learning_rate=5e-3, precision="fp32"
)


def texts_of(topic: int, count: int) -> list[str]:
    """Twelve words of a topic each, in any order."""
    draws = torch.Generator().manual_seed(topic)
    words = TOPICS[topic]
    places = torch.randint(len(words), (count, 12), generator=draws).tolist()
    return sorted({" ".join(words[p] for p in row) for row in places})


TEXTS = sorted(texts_of(0, 60) + texts_of(1, 60))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return new_tokenizer(TEXTS, NEW.vocabulary)


@given(st.integers(0, 2**32), st.integers(2, 40))
def test_halves_are_a_text_cut_once_in_its_frame(
    tokenizer: PreTrainedTokenizerFast, seed: int, batch: int
) -> None:
    config = CONFIG.model_copy(update={"batch": batch})
    batches = HalvesBatches(TEXTS, tokenizer, config, 10, seed)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    whole = sorted(tokenizer(TEXTS, truncation=True, max_length=10)["input_ids"])
    seen, count = [], 0
    for one in batches(0):
        count += 1
        firsts, seconds = (part.tolist() for part in one["input_ids"].chunk(2))
        masks = one["attention_mask"].chunk(2)
        assert len(firsts) == len(seconds) >= min(batch, len(TEXTS))
        assert len(firsts) < 2 * batch
        for first, second, m, n in zip(firsts, seconds, *masks, strict=True):
            a, b = first[: int(m.sum())], second[: int(n.sum())]
            assert a[0] == b[0] == cls and a[-1] == b[-1] == sep
            bodies = a[1:-1], b[1:-1]
            assert all(len(body) >= (10 - 2) // 3 for body in bodies)
            either = [[cls, *x, *y, sep] for x, y in (bodies, bodies[::-1])]
            assert any(text in whole for text in either)
            seen.append(tuple(sorted(bodies[0] + bodies[1])))
    assert count == batches.steps
    assert sorted(seen) == sorted(tuple(sorted(ids[1:-1])) for ids in whole)


def test_every_epoch_cuts_elsewhere_and_the_same_seed_alike(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    def epochs() -> list[list[list[int]]]:
        batches = HalvesBatches(TEXTS, tokenizer, CONFIG, 16, seed=4)
        return [[b["input_ids"].sum(1).tolist() for b in batches(k)] for k in range(2)]

    first, second = epochs(), epochs()
    assert first == second
    assert first[0] != first[1]


def test_every_epoch_puts_others_of_like_length_beside_a_text(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    alike = [text for text in TEXTS if len(text.split()) == len(TEXTS[0].split())]
    assert len(alike) > 4
    batches = HalvesBatches(alike, tokenizer, CONFIG.model_copy(update={"batch": 2}), 16, seed=4)

    def pairs(epoch: int) -> set[frozenset[int]]:
        """Which texts met, each told by the sum of its tokens."""
        met = (batch["input_ids"].sum(1) for batch in batches(epoch))
        return {frozenset((a + b).tolist()) for a, b in (sums.chunk(2) for sums in met)}

    assert pairs(0) != pairs(1)


def test_the_loss_is_that_of_each_half_among_all_others(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    torch.manual_seed(2)
    encoder = new_encoder(NEW, tokenizer).eval()
    ids = tokenizer(["red blue", "one two three four", "green", "six six five"])["input_ids"]
    tokens, mask = pad(ids)
    with torch.no_grad():
        alone = torch.cat([mean_encoding(encoder, *pad([one])) for one in ids])
        alone = alone / alone.norm(dim=1, keepdim=True)
        alike = (alone[:2] @ alone[2:].T / 0.05).double()
        expected = -(alike.log_softmax(1).diag() + alike.log_softmax(0).diag()).mean() / 2
        assert Halves(encoder)(tokens, mask).item() == pytest.approx(expected.item(), rel=1e-4)


def test_texts_of_one_topic_end_up_beside_each_other() -> None:
    encoder, tokenizer, losses = pretrain_text(TEXTS, CONFIG, None, 16, 1, CPU, lambda *_: None)
    again = pretrain_text(TEXTS, CONFIG, None, 16, 1, CPU, lambda *_: None)[2]
    assert losses == again
    assert losses[-1] < losses[0] - 0.2
    sets = [tokenizer(texts_of(topic, 30))["input_ids"] for topic in range(2)]
    with torch.no_grad():
        red, one = (torch.cat([mean_encoding(encoder, *pad([i])) for i in ids]) for ids in sets)
    apart = (red.mean(0) - one.mean(0)).norm()
    within = (red - red.mean(0)).norm(dim=1).mean()
    assert apart > 2 * within


@pytest.mark.parametrize("texts", [["red " * 30], ["red", "blue green"]])
def test_texts_too_short_to_cut_are_one_line(
    tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    with pytest.raises(UserError, match=rf"halves: [01] of {len(texts)} texts have {SHORTEST}"):
        HalvesBatches(texts, tokenizer, CONFIG, 16, 1)


def test_one_text_a_batch_leaves_nothing_to_tell_from() -> None:
    with pytest.raises(ValidationError, match="batch: 1: expected 2 or more"):
        TextPretraining(objective="halves", batch=1)


def test_too_few_tokens_for_any_text_are_one_line(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"max_tokens: 9, of which 7 are of a text; .* 8 at least"):
        HalvesBatches(TEXTS, tokenizer, CONFIG, 9, 1)


def test_likeness_is_told_as_finely_in_half_precision(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = Halves(new_encoder(NEW, tokenizer).eval())
    tokens, mask = pad(tokenizer(TEXTS[:20])["input_ids"])
    seen = []
    real = functional.cross_entropy

    def spy(alike: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        seen.append(alike.dtype)
        return real(alike, own)

    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "cross_entropy", spy)
        asked(tokens, mask)
    assert seen == [torch.float32] * 2
