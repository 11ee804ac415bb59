"""What every peer is asked to do with texts: mean-pooled encodings of MiniLM, on two threads.

    python -m tests.bench.peers.encode_<peer> <encoder folder> <texts.json> <out.npy> [<precision>]

Prints one line of JSON: the seconds of encoding all texts, tokenising included, after a first
round over a few of them.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAX_TOKENS = 128
THREADS = 2
FEW = 64
BATCH = 32

Encode = Callable[[list[str]], Any]


def main(load: Callable[[str], Encode]) -> None:
    """Load an encoder, encode, keep the encodings."""
    folder, source, out = sys.argv[1:4]
    texts = json.loads(Path(source).read_text(encoding="utf-8"))
    encode = load(folder)
    encode(texts[:FEW])
    start = time.perf_counter()
    encoded = encode(texts)
    seconds = time.perf_counter() - start
    np.save(out, np.asarray(encoded, dtype=np.float32))
    print(json.dumps({"seconds": seconds}))


def in_sorted_batches(
    ids: Sequence[Sequence[int]],
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Texts of like length together, `BATCH` at a time: their places, and a BERT's inputs."""
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        tokens = np.zeros((len(places), len(ids[places[-1]])), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, place in enumerate(places):
            tokens[row, : len(ids[place])] = ids[place]
            mask[row, : len(ids[place])] = 1
        types = np.zeros_like(tokens)
        inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
        yield places, inputs


def mean(hidden: Any, mask: Any) -> Any:
    """[U, E] of [U, L, E]: the mean over each text's tokens."""
    weight = mask[..., None]
    return (hidden * weight).sum(1) / weight.sum(1)
