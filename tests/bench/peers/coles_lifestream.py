"""pytorch-lifestream's CoLES (Babaev et al. 2022): embeddings of the rows of a snapshot.

    python -m tests.bench.peers.coles_lifestream <snapshot> <folder>

The folder is given a file of embeddings a role, its rows in the snapshot's order.

It sees the events that the network sees. It is trained without labels, on the sequence of every
user of the fit role as of the user's last row there, with the sizes, the loss, the noise and the
rates of the library's own example (coles-emb.ipynb); slices are shorter, since sequences are.
Prints one line of JSON: the users, and the seconds it took.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytorch_lightning as lightning
import torch
from ptls.data_load.datasets import MemoryMapDataset
from ptls.data_load.utils import collate_feature_dict
from ptls.frames import PtlsDataModule
from ptls.frames.coles import ColesDataset, CoLESModule
from ptls.frames.coles.split_strategy import SampleSlices
from ptls.nn import RnnSeqEncoder, TrxEncoder

SEED = 1
EPOCHS = 15
BATCH = 64
SLICES, SHORTEST, LONGEST = 5, 5, 40
# The width of each code's embedding; code 0 is the padding.
CODES = {"events_type": 8, "events_category": 16, "events_hour": 8, "events_weekday": 4}
NUMBERS = ("events_amount", "events_gap_h")
FROM_ZERO = ("events_hour", "events_weekday")
AGE = "events_age_h"
ROLES = ("fit", "select", "test")


def main(snapshot: Path, out: Path) -> None:
    start = time.perf_counter()
    lightning.seed_everything(SEED, verbose=False)
    frames = {role: read(snapshot, role) for role in ROLES}
    users = frames["fit"].sort("as_of").unique("user_key", keep="last", maintain_order=True)
    sizes = {c: max(_largest(frame, c) for frame in frames.values()) + 1 for c in CODES}
    model = coles(sizes)
    data = PtlsDataModule(
        train_data=ColesDataset(
            MemoryMapDataset(sequences(users.filter(pl.col(AGE).list.len() > SHORTEST))),
            splitter=SampleSlices(split_count=SLICES, cnt_min=SHORTEST, cnt_max=LONGEST),
        ),
        train_batch_size=BATCH,
    )
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    for role, frame in frames.items():
        np.save(out / f"{role}.npy", embedded(model.seq_encoder, sequences(frame)))
    print(json.dumps({"users": users.height, "seconds": time.perf_counter() - start}))


def read(snapshot: Path, role: str) -> pl.DataFrame:
    """user_key, as_of, and lists of events; the rows in the snapshot's order."""
    files = sorted((snapshot / role).glob("*.parquet"))
    columns = ["user_key", "as_of", *CODES, *NUMBERS, AGE]
    frame = pl.concat([pl.read_parquet(file, columns=columns) for file in files])
    return frame.with_columns(pl.col(FROM_ZERO).list.eval(pl.element() + 1))


def coles(sizes: dict[str, int]) -> CoLESModule:
    """The module of the library's example."""
    events = TrxEncoder(
        embeddings_noise=0.003,
        numeric_values=dict.fromkeys(NUMBERS, "log"),
        embeddings={c: {"in": sizes[c], "out": width} for c, width in CODES.items()},
    )
    return CoLESModule(
        seq_encoder=RnnSeqEncoder(trx_encoder=events, hidden_size=256, type="gru"),
        optimizer_partial=partial(torch.optim.Adam, lr=0.001),
        lr_scheduler_partial=partial(torch.optim.lr_scheduler.StepLR, step_size=30, gamma=0.9),
    )


def sequences(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The library's records, a row each."""
    columns = {c: frame[c].to_list() for c in (*CODES, *NUMBERS, AGE)}
    records = []
    for row in range(frame.height):
        own: dict[str, Any] = {c: torch.tensor(columns[c][row]).long() for c in CODES}
        own |= {c: torch.tensor(columns[c][row], dtype=torch.float32) for c in NUMBERS}
        own["event_time"] = -torch.tensor(columns[AGE][row]).round().int()
        records.append(own)
    return records


@torch.inference_mode()
def embedded(encoder: torch.nn.Module, records: list[dict[str, Any]]) -> np.ndarray:
    """[rows, 256]"""
    encoder.eval()
    parts = [records[start : start + BATCH] for start in range(0, len(records), BATCH)]
    return np.concatenate([encoder(collate_feature_dict(part)).numpy() for part in parts])


def _largest(frame: pl.DataFrame, column: str) -> int:
    largest = frame[column].list.max().max()
    return largest if isinstance(largest, int) else 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
