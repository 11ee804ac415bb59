"""The text tower, texts chunked by length, in fp32, int8 or bf16."""

import sys

import torch

from models.data.batch import EVENNESS, make_texts
from models.nets.int8 import to_int8
from models.nets.text import TextTower, freeze, load_encoder, load_tokenizer
from tests.bench.peers.texts import MAX_TOKENS, THREADS, Encode, main


def load(folder: str) -> Encode:
    torch.set_num_threads(THREADS)
    tokenizer, encoder = load_tokenizer(folder), load_encoder(folder)
    freeze(encoder, 0)
    precision = sys.argv[4]
    if precision == "int8":
        to_int8(encoder)
    elif precision == "bf16":
        encoder = encoder.bfloat16()
    tower = TextTower(encoder, 8, 0.0).eval()

    @torch.inference_mode()
    def encode(texts: list[str]) -> torch.Tensor:
        made, rank = make_texts(
            texts, tokenizer, MAX_TOKENS, 1.0 if precision == "int8" else EVENNESS
        )
        return tower.encode(made)[torch.from_numpy(rank)]

    return encode


if __name__ == "__main__":
    main(load)
