"""What users write: sentences composed from phrases, with the truth of what they say.

A text is of one kind. `POLARITY` is how much hardship it tells of (1 hardship, negative where
hardship is denied or all is well), `INTENT` whether the user means to buy.
"""

import re
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ray_jobs.market import phrases_en, phrases_zh
from ray_jobs.market.world import CATEGORIES, WORLD, TextParams

_T = TypeVar("_T")

TEXT_KINDS = (
    "hardship", "denied", "bystander", "satisfied", "complaint", "intent", "refusal", "neutral",
)  # fmt: skip
POLARITY = np.array(WORLD.texts.polarity)
INTENT = np.array(WORLD.texts.intent)
MIN_WORDS, MAX_WORDS = 8, 18
_SLOT = re.compile(r"\{(\w+)\}")
_PARTICLES = ("啊", "哦", "嗯", "呢", "哈", "唉")
_TYPO_LETTERS = 6
_DRAWS = 16


@dataclass(frozen=True)
class Grammar:
    """The phrases of a language, as `phrases_en` has them."""

    twins: tuple[tuple[str, str], ...]
    templates: dict[str, tuple[str, ...]]
    slots: dict[str, tuple[str, ...]]
    fillers: tuple[str, ...]
    products: dict[str, tuple[str, ...]]


ENGLISH = Grammar(
    phrases_en.TWINS,
    phrases_en.TEMPLATES,
    phrases_en.SLOTS,
    phrases_en.FILLERS,
    phrases_en.PRODUCTS,
)
CHINESE = Grammar(
    phrases_zh.TWINS,
    phrases_zh.TEMPLATES,
    phrases_zh.SLOTS,
    phrases_zh.FILLERS,
    phrases_zh.PRODUCTS,
)


def draw_kinds(
    rng: np.random.Generator, trouble: npt.NDArray[np.float64], params: TextParams = WORLD.texts
) -> npt.NDArray[np.int64]:
    """The kind (an index into `TEXT_KINDS`) of one text for each entry of `trouble`."""
    size = len(trouble)
    about_money = rng.random(size) < params.money_share
    bystander = rng.random(size) < params.bystander_share
    in_hardship = rng.random(size) < _sigmoid(
        params.hardship_logit + params.hardship_trouble * trouble
    )
    money = np.where(bystander, 2, np.where(in_hardship, 0, 1))
    other = 3 + np.searchsorted(np.cumsum(params.other_mix)[:-1], rng.random(size), side="right")
    return np.where(about_money, money, other)


def compose(
    rng: np.random.Generator,
    kinds: npt.NDArray[np.int64],
    categories: npt.NDArray[np.int64],
    chinese: npt.NDArray[np.bool_],
    params: TextParams = WORLD.texts,
) -> list[str]:
    """One sentence for each kind, about a product of the category; Chinese where `chinese`.

    English sentences have 8 to 18 words. No sentence carries an id, a date or an amount.
    """
    draws = rng.random((len(kinds), _DRAWS))
    return [
        _sentence(CHINESE if is_chinese else ENGLISH, kind, category, row, params)
        for kind, category, is_chinese, row in zip(
            kinds.tolist(), categories.tolist(), chinese.tolist(), draws.tolist(), strict=True
        )
    ]


def _sentence(
    grammar: Grammar, kind: int, category: int, draws: list[float], params: TextParams
) -> str:
    template, product, filler_wanted, filler, at_front, typo_wanted, typo_word, typo, *slots = draws
    pick = iter(slots)

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "product":
            return _choose(grammar.products[CATEGORIES[category]], product)
        return _choose(grammar.slots[name], next(pick))

    name = TEXT_KINDS[kind]
    if name in ("hardship", "denied"):
        text = _choose(grammar.twins, template)[kind]
    else:
        text = _choose(grammar.templates[name], template)
    text = _SLOT.sub(fill, text)
    clause = _choose(grammar.fillers, filler)
    if grammar is CHINESE:
        if filler_wanted < params.filler_share:
            text = f"{clause}，{text}" if at_front < 1 / 2 else f"{text}，{clause}"
        return text + _choose(_PARTICLES, typo) if typo_wanted < params.typo_share else text
    words = len(text.split())
    fits = words + len(clause.split()) <= MAX_WORDS
    if words < MIN_WORDS or (fits and filler_wanted < params.filler_share):
        text = f"{clause}, {text}" if at_front < 1 / 2 else f"{text}, {clause}"
    return _misspelt(text, typo_word, typo) if typo_wanted < params.typo_share else text


def _misspelt(text: str, which: float, how: float) -> str:
    """One long word with two letters swapped, one dropped, or one doubled."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= _TYPO_LETTERS and word.isalpha()]
    if not long:
        return text
    at = long[int(which * len(long))]
    word = words[at]
    middle = 1 + int(how * (len(word) - 2))
    swapped = word[:middle] + word[middle + 1] + word[middle] + word[middle + 2 :]
    dropped = word[:middle] + word[middle + 1 :]
    doubled = word[:middle] + word[middle] + word[middle:]
    words[at] = (swapped, dropped, doubled)[int(which * 1000) % 3]
    return " ".join(words)


def _choose(options: tuple[_T, ...], draw: float) -> _T:
    return options[int(draw * len(options))]


def _sigmoid(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-logit))
