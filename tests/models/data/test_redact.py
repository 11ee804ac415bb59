"""Personal data leaves the texts; everything else stays."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.redact import PATTERNS, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail a.b+c@x-y.co.uk!", "mail [EMAIL]!"),
        ("邮箱abc@qq.com谢谢", "邮箱[EMAIL]谢谢"),
        ("看http://a.b/c?d=1谢谢", "看[URL]谢谢"),
        ("see WWW.shop.example.", "see [URL]"),
        ("see Www.example.com/john", "see [URL]"),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "[CARD]"),
        ("+1 (2) 3", "[PHONE]"),
        ("call +44 20 7946 0958 or (415) 555-2671", "call [PHONE] or [PHONE]"),
        ("tel 01632 960123.", "tel [PHONE]."),
        ("电话13812345678，", "电话[PHONE]，"),
        ("138 1234 5678", "[PHONE]"),
        ("010-62345678", "[PHONE]"),
        ("+8613812345678", "[PHONE]"),
        ("5551234567", "[PHONE]"),
        ("card 4111 1111 1111 1111 ok", "card [CARD] ok"),
        ("3782-822463-10005", "[CARD]"),
        ("身份证11010519491231002X。", "身份证[ID]。"),
        ("IBAN GB29 NWBK 6016 1331 9268 19 x", "IBAN [IBAN] x"),
        ("DE89370400440532013000", "[IBAN]"),
        ("RO49AAAA1B31007593840000", "[IBAN]"),
    ],
)
def test_what_goes(text: str, expected: str) -> None:
    assert redact(pl.Series([text])).to_list() == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "WHITE HANGING HEART T-LIGHT HOLDER 85123A",
        "order 536365 on 2010-12-01 08:26 at 10:30",
        "SET OF 12 GLASS 2.5 x 100 cm 0.55",
        "PC10 RING BOWL MUGS",
        "paid 1,234.50 on 12/01/2010",
        "5 @ 3 each",
        "",
    ],
)
def test_what_stays(text: str) -> None:
    assert redact(pl.Series([text])).to_list() == [text]


PIECES = st.sampled_from(
    [
        *"019Xx+@:. -/()卡",
        "www.",
        "wWw.",
        "http",
        "HTTPS",
        "://",
        "a.bc",
        "DE89",
        "00",
        "13",
        "2024",
    ]
)


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=40).map("".join))
def test_what_is_not_suspected_matches_no_pattern(text: str) -> None:
    """The shortcut lets nothing through that the patterns would find."""
    cleaned = pl.Series([text])
    for token, pattern in PATTERNS:
        cleaned = cleaned.str.replace_all(pattern, token)
    assert redact(pl.Series([text])).equals(cleaned)


def test_rows_keep_their_places() -> None:
    texts = pl.Series("text", ["a@b.cd", None, "fine", "a@b.cd"])
    cleaned = redact(texts)
    assert cleaned.to_list() == ["[EMAIL]", None, "fine", "[EMAIL]"]
    assert cleaned.name == "text"
    assert redact(pl.Series("text", [], dtype=pl.String)).to_list() == []
    assert redact(pl.Series("text", [None], dtype=pl.String)).to_list() == [None]
