"""ONNX Runtime in int8: weights quantised, activations as they come, lengths sorted."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModel, AutoTokenizer

from tests.bench.peers.texts import MAX_TOKENS, THREADS, Encode, in_sorted_batches, main, mean

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def load(folder: str) -> Encode:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as scratch:
        session = session_of(folder, Path(scratch))

    def encode(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        encoded = np.empty((len(texts), 384), dtype=np.float32)
        for places, inputs in in_sorted_batches(ids):
            (hidden,) = session.run(None, inputs)
            encoded[places] = mean(hidden, inputs["attention_mask"])
        return encoded

    return encode


def session_of(folder: str, scratch: Path) -> onnxruntime.InferenceSession:
    """The encoder exported and quantised."""
    model = AutoModel.from_pretrained(folder).eval()
    export(model, scratch / "fp32.onnx")
    quantize_dynamic(scratch / "fp32.onnx", scratch / "int8.onnx", weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(
        scratch / "int8.onnx", options, providers=["CPUExecutionProvider"]
    )


def export(model: torch.nn.Module, path: Path) -> None:
    """The last hidden states as an ONNX graph of any batch and length."""

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor):
            return self.model(ids, mask, types).last_hidden_state

    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in INPUTS)
    axes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    torch.onnx.export(
        Hidden(),
        example,
        path,
        input_names=list(INPUTS),
        output_names=["hidden"],
        dynamic_axes=axes | {"hidden": {0: "batch", 1: "length"}},
        dynamo=False,
    )


if __name__ == "__main__":
    main(load)
