"""Personal data in texts → tokens such as [EMAIL], by pattern, before a text reaches the lake.

Every pattern costs some harmless texts (a long order number reads as a card); a leak costs more.
Word boundaries are ASCII ones, so that a number inside Chinese text is found too.
"""

import polars as pl

_B = r"(?-u:\b)"
# nothing below matches a text without one of these; digits may stand apart, as in +1 (2) 3
_SUSPECT = r"@|(?i:www\.)|://|\d\)?[ .\-/]?\(?\d"

# In this order: an IBAN holds runs of digits, an identity card is an 18-digit "card".
PATTERNS: tuple[tuple[str, str], ...] = (
    ("[URL]", _B + r"(?i:https?://|www\.)[A-Za-z0-9\-._~:/?#\[\]@!$&()*+,;=%]+"),
    ("[EMAIL]", r"[A-Za-z0-9._%+\-]+@[A-Za-z0-9.\-]+\.[A-Za-z]{2,}"),
    (
        "[IBAN]",  # ISO 13616: country, two check digits, up to 30 characters in groups of four
        _B + r"[A-Z]{2}\d{2} ?[A-Z0-9]{4} ?[A-Z0-9]{2}\d{2}(?: ?[A-Z0-9]{4}){0,6}"
        r"(?: ?[A-Z0-9]{1,4})?" + _B,
    ),
    (
        "[ID]",  # GB 11643-1999: region, birth date, serial number, check character
        _B + r"[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]" + _B,
    ),
    ("[PHONE]", r"\+[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}" + _B),
    ("[CARD]", _B + r"\d(?:[ -]?\d){12,18}" + _B),  # ISO/IEC 7812: 13 to 19 digits
    ("[PHONE]", _B + r"00[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}" + _B),
    ("[PHONE]", _B + r"1[3-9]\d[ -]?\d{4}[ -]?\d{4}" + _B),  # a Chinese mobile
    ("[PHONE]", r"(?:" + _B + r"|\()0\d{2,4}\)?[ .\-/]?\d{3,4}[ .\-]?\d{3,4}" + _B),
    ("[PHONE]", r"(?:" + _B + r"|\()\d{3}\)?[ .\-]\d{3}[ .\-]\d{4}" + _B),
    ("[PHONE]", _B + r"\d{10,12}" + _B),
)


def redact(texts: pl.Series) -> pl.Series:
    """The texts with e-mail addresses, phone, card, identity-card and account numbers and links
    replaced by tokens; null stays null. Each distinct text is looked at once."""
    unique = texts.drop_nulls().unique()
    suspects = unique.filter(unique.str.contains(_SUSPECT))
    if suspects.is_empty():
        return texts
    cleaned = suspects
    for token, pattern in PATTERNS:
        cleaned = cleaned.str.replace_all(pattern, token)
    pairs = pl.DataFrame({"text": suspects, "cleaned": cleaned})
    joined = pl.DataFrame({"text": texts}).join(pairs, on="text", how="left", maintain_order="left")
    return joined.select(pl.coalesce("cleaned", "text")).to_series().alias(texts.name)
