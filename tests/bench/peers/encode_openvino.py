"""OpenVINO in int8, calibrated by NNCF on some of the texts, lengths sorted."""

import json
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
from transformers import AutoModel, AutoTokenizer

from tests.bench.peers.texts import MAX_TOKENS, THREADS, Encode, in_sorted_batches, main, mean

CALIBRATED_ON = 128


def load(folder: str) -> Encode:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    some = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))[:CALIBRATED_ON]
    ids = tokenizer(some, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    compiled = compiled_of(folder, [inputs for _, inputs in in_sorted_batches(ids)])

    def encode(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        encoded = np.empty((len(texts), 384), dtype=np.float32)
        for places, inputs in in_sorted_batches(ids):
            encoded[places] = mean(compiled(inputs)["hidden"], inputs["attention_mask"])
        return encoded

    return encode


def compiled_of(folder: str, calibration: list[dict[str, np.ndarray]]) -> openvino.CompiledModel:
    """The encoder converted, quantised and compiled."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    example = {name: torch.from_numpy(value) for name, value in calibration[0].items()}
    converted = openvino.convert_model(model, example_input=example)
    converted.outputs[0].get_tensor().set_names({"hidden"})
    quantised = nncf.quantize(
        converted, nncf.Dataset(calibration), model_type=nncf.ModelType.TRANSFORMER
    )
    config = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
    return openvino.compile_model(quantised, "CPU", config)


if __name__ == "__main__":
    main(load)
