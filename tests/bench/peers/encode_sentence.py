"""sentence-transformers, which sorts by length itself, in the precision of the last argument."""

import sys

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer

from tests.bench.peers.texts import BATCH, MAX_TOKENS, THREADS, Encode, main

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load(folder: str) -> Encode:
    torch.set_num_threads(THREADS)
    words = Transformer(folder, max_seq_length=MAX_TOKENS)
    pooling = Pooling(words.get_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[words, pooling], device="cpu")
    model = model.to(PRECISIONS[sys.argv[4]])
    return lambda texts: model.encode(texts, batch_size=BATCH, convert_to_tensor=True).float()


if __name__ == "__main__":
    main(load)
