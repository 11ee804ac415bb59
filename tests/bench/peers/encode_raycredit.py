"""The text tower, texts chunked by length: in int8 as scores may be computed, or as training is, in
bf16 where this machine multiplies it faster."""

import sys

import torch

from models.data.batch import EVENNESS, make_texts
from models.nets.fit import bf16_is_faster
from models.nets.int8 import to_int8
from models.nets.text import TextTower, freeze, load_encoder, load_tokenizer
from tests.bench.peers.texts import MAX_TOKENS, THREADS, Encode, main


def load(folder: str) -> Encode:
    torch.set_num_threads(THREADS)
    tokenizer, encoder = load_tokenizer(folder), load_encoder(folder)
    freeze(encoder, 0)
    int8 = sys.argv[4] == "int8"
    if int8:
        to_int8(encoder)
    elif bf16_is_faster(torch.device("cpu")):
        encoder = encoder.bfloat16()
    tower = TextTower(encoder, 8, 0.0).eval()

    @torch.inference_mode()
    def encode(texts: list[str]) -> torch.Tensor:
        made, rank = make_texts(texts, tokenizer, MAX_TOKENS, 1.0 if int8 else EVENNESS)
        return tower.encode(made)[torch.from_numpy(rank)]

    return encode


if __name__ == "__main__":
    main(load)
