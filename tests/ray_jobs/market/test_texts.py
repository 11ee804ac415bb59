import re

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ray_jobs.market import texts
from ray_jobs.market.texts import CHINESE, ENGLISH, INTENT, POLARITY, TEXT_KINDS, Grammar
from ray_jobs.market.world import CATEGORIES

KINDS = np.arange(len(TEXT_KINDS))
HARDSHIP, DENIED = TEXT_KINDS.index("hardship"), TEXT_KINDS.index("denied")


def composed(seed: int, kinds: np.ndarray, chinese: bool = False) -> list[str]:
    rng = np.random.default_rng(seed)
    categories = rng.integers(0, len(CATEGORIES), size=len(kinds))
    return texts.compose(rng, kinds, categories, np.full(len(kinds), chinese))


def words(phrase: str) -> list[str]:
    """English words, Chinese characters, and slots."""
    return re.findall(r"\w+" if phrase.isascii() else r"[a-z]+|\w", phrase)


@pytest.mark.parametrize("grammar", [ENGLISH, CHINESE])
def test_negation_flips_polarity(grammar: Grammar) -> None:
    assert POLARITY[HARDSHIP] == 1
    assert POLARITY[DENIED] == -1
    assert INTENT[TEXT_KINDS.index("intent")] == -INTENT[TEXT_KINDS.index("refusal")] == 1
    for hardship, denied in grammar.twins:
        ours, theirs = words(hardship), words(denied)
        shared = len(set(ours) & set(theirs)) / len(set(ours) | set(theirs))
        assert hardship != denied
        assert shared >= 0.5


@pytest.mark.parametrize("grammar", [ENGLISH, CHINESE])
def test_most_twins_are_the_very_same_words_in_another_order(grammar: Grammar) -> None:
    same = [sorted(words(a)) == sorted(words(b)) for a, b in grammar.twins]
    assert np.mean(same) > 0.5


def test_single_words_tell_far_less_than_reading() -> None:
    kinds = np.tile([HARDSHIP, DENIED], 1500)
    sentences = composed(1, kinds)
    bags = TfidfVectorizer().fit_transform(sentences)
    half = len(kinds) // 2
    model = LogisticRegression().fit(bags[:half], kinds[:half])
    auc = roc_auc_score(kinds[half:], model.predict_proba(bags[half:])[:, 1])
    assert 0.6 < auc < 0.88


@pytest.mark.parametrize("grammar", [ENGLISH, CHINESE])
def test_every_slot_and_kind_has_phrases(grammar: Grammar) -> None:
    assert {*grammar.templates, "hardship", "denied"} == set(TEXT_KINDS)
    assert tuple(grammar.products) == CATEGORIES
    phrases = [side for pair in grammar.twins for side in pair]
    phrases += [phrase for group in grammar.templates.values() for phrase in group]
    for phrase in phrases:
        assert set(re.findall(r"\{(\w+)\}", phrase)) <= {*grammar.slots, "product"}


def test_english_sentences_are_short_plain_and_many() -> None:
    sentences = composed(2, np.tile(KINDS, 1000))
    lengths = [len(sentence.split()) for sentence in sentences]
    assert min(lengths) >= texts.MIN_WORDS
    assert max(lengths) <= texts.MAX_WORDS
    assert not any(re.search(r"[\d{}_@]", sentence) for sentence in sentences)
    assert len(set(sentences)) > 6000


def test_chinese_sentences_are_chinese() -> None:
    sentences = composed(3, np.tile(KINDS, 200), chinese=True)
    assert all(re.fullmatch(r"[\u4e00-\u9fff，。：]+", sentence) for sentence in sentences)
    assert all(8 <= len(sentence) <= 50 for sentence in sentences)


def test_the_same_seed_says_the_same() -> None:
    assert composed(4, KINDS) == composed(4, KINDS)
    assert composed(4, KINDS) != composed(5, KINDS)


def test_nothing_to_say() -> None:
    assert composed(6, np.empty(0, dtype=np.int64)) == []
    assert len(texts.draw_kinds(np.random.default_rng(0), np.empty(0))) == 0


def test_trouble_shows_in_texts_and_not_in_their_topics() -> None:
    rng = np.random.default_rng(7)
    calm = texts.draw_kinds(rng, np.full(20_000, -1.0))
    troubled = texts.draw_kinds(rng, np.full(20_000, 1.0))
    assert POLARITY[troubled].mean() > POLARITY[calm].mean() + 0.4
    about_money = [np.mean(kinds <= TEXT_KINDS.index("bystander")) for kinds in (calm, troubled)]
    assert abs(about_money[0] - about_money[1]) < 0.02
