"""The reviews that encoders are measured on, and the work that a text is. Imports no Ray."""

import json
from collections.abc import Iterable
from pathlib import Path

REVIEWS = Path("../shared/data/womens_clothing/reviews.parquet")


def flops(encoder: Path, lengths: Iterable[int]) -> float:
    """Multiplications and additions of texts' own tokens in the matrix products of a BERT whose
    config.json is in `encoder`; forward alone."""
    sizes = json.loads((encoder / "config.json").read_text(encoding="utf-8"))
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    matrices = 2 * (4 * width * width + 2 * width * inner)
    a_layer = sum(matrices * length + 4 * length * length * width for length in lengths)
    return float(sizes["num_hidden_layers"] * a_layer)
