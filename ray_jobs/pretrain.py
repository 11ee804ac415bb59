"""`pretrain`: the lake's texts and events → encoders that fine-tuning can start from.

    <work>/pretrained/text-<id>/        a Hugging Face folder, for network.text.encoder
    <work>/pretrained/behaviour-<id>/   tower.safetensors, tower.json: network.behaviour.pretrained

Only what was known at the last as-of time of the fit role is read, of all users, with labels or
without. Tasks read the buckets; one task trains, on a GPU where there is one.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import ray
import torch

from models.data.features import features
from models.data.history import History, known_by, view
from models.data.rows import number, rows_as_of
from models.data.schema import UserError
from models.data.stats import Stats
from models.nets.pretrain_events import TowerSpec, pretrain_events, save_tower
from models.nets.pretrain_text import KEY, pretrain_text
from models.nets.text import encoder_digest, load_tokenizer
from ray_jobs.cluster import on_gpus
from ray_jobs.config import Config
from ray_jobs.parallel import over, result_of
from ray_jobs.progress import say, watched
from ray_jobs.snapshot import ROWS_TOGETHER, Snapshot, snapshot
from ray_jobs.storage import in_one_step, short_digest
from ray_jobs.tables import Tables

Train = Callable[[Config, Path, Any], list[float]]  # in a folder, telling a board; the losses
STEPS_A_REPORT = 5
ROWS = "rows"  # what tasks read of the lake, until it has been trained on
MADE_FROM = "pretrained.json"


def pretrain(config: Config, tables: Tables) -> dict[str, Path]:
    """Pretrain what the configuration asks for; the folder of each part. Raises UserError."""
    made = {}
    if config.pretrain.text is not None:
        made["text"] = pretrain_texts(config, tables)
        say(f"pretrain: to start from it: network.text.encoder={made['text']}")
    if config.pretrain.behaviour is not None:
        made["behaviour"] = pretrain_behaviour(config, tables, snapshot(config, tables))
        say(f"pretrain: to start from it: network.behaviour.pretrained={made['behaviour']}")
    if not made:
        raise UserError("pretrain: neither pretrain.text nor pretrain.behaviour is asked for")
    return made


def pretrain_texts(config: Config, tables: Tables) -> Path:
    """An encoder trained on the texts by the objective that is asked for; its folder."""
    asked = config.pretrain.text
    assert asked is not None
    if isinstance(asked.start, str):
        load_tokenizer(asked.start, KEY)  # a wrong name is refused before anything is read
    made_from = {
        "text": asked.model_dump(mode="json"),
        "layers": config.network.text.layers if isinstance(asked.start, str) else None,
        "max_tokens": config.features.max_tokens,
        "versions": tables.versions,
        "content": tables.content,
        "encoder": encoder_digest(asked.start) if isinstance(asked.start, str) else None,
        **_since(config),
    }
    return _made(config, "text", made_from, _Texts(config, tables), _train_text)


def pretrain_behaviour(config: Config, tables: Tables, made: Snapshot) -> Path:
    """A tower trained by the objective that is asked for, in a snapshot's words; its folder."""
    asked = config.pretrain.behaviour
    assert asked is not None
    spec = TowerSpec.of(config.network, config.features, made.stats.vocabulary)
    made_from = {
        "behaviour": asked.model_dump(mode="json"),
        "tower": spec.model_dump(mode="json"),
        "dropout": config.network.dropout,
        "snapshot": Path(made.folder).name,
        **_since(config),
    }
    train = partial(_train_behaviour, spec, made.stats)
    return _made(config, "behaviour", made_from, _Users(config, tables, made), train)


def _since(config: Config) -> dict[str, Any]:
    return {"lake": config.lake, "until": f"{_end(config):%Y-%m-%d}", "seed": config.seed}


def _end(config: Config) -> datetime:
    """The last as-of time of the fit role."""
    return config.split.last_fit()


@dataclass(frozen=True)
class _Texts:
    """A bucket's distinct texts, or a sample of them."""

    config: Config
    tables: Tables

    def __call__(self, bucket: int) -> pl.DataFrame:
        asked = self.config.pretrain.text
        assert asked is not None
        events = known_by(self.tables.events(bucket), _end(self.config))
        texts = events.select("text").drop_nulls().unique()
        most = -(-asked.max_texts // len(self.tables.buckets))
        return _sample(texts, "text", most, self.config.seed)


@dataclass(frozen=True)
class _Users:
    """The events, as feature rows have them, of a bucket's users with two or more, or a sample."""

    config: Config
    tables: Tables
    snapshot: Snapshot

    def __call__(self, bucket: int) -> pl.DataFrame:
        asked, end = self.config.pretrain.behaviour, _end(self.config)
        assert asked is not None
        events = known_by(self.tables.events(bucket), end)
        counts = events.group_by("user_key").len().filter(pl.col("len") > 1)
        most = -(-asked.max_users // len(self.tables.buckets))
        users = _sample(counts, "user_key", most, self.config.seed)["user_key"]
        own = events.filter(pl.col("user_key").is_in(users.implode()))
        rows = rows_as_of(users, end)
        parts = [*rows.iter_slices(ROWS_TOGETHER)] or [rows]
        return pl.concat([self._sequences(own, number(part.drop("row"))) for part in parts])

    def _sequences(self, events: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
        """The last events that a history keeps, not only those that a network reads at a time."""
        kept = self.config.features.history
        asked = self.config.features.model_copy(update={"max_events": kept.kept_events})
        seen = view(History(recent=events), rows, kept)
        frame = features(seen, self.snapshot.stats.vocabulary, asked).frame
        return frame.select("user_key", "^events_.*$").filter(pl.col("events_type").list.len() > 1)


def _sample(rows: pl.DataFrame, key: str, most: int, seed: int) -> pl.DataFrame:
    """At most so many rows, drawn by a hash, in an order of its own."""
    return rows.sort(pl.col(key).hash(seed)).head(most)


@dataclass(frozen=True)
class _Write:
    """A task: a bucket's rows as a file; how many."""

    rows: Callable[[int], pl.DataFrame]
    folder: Path

    def __call__(self, bucket: int) -> int:
        rows = self.rows(bucket)
        rows.write_parquet(self.folder / f"bucket-{bucket:06d}.parquet")
        return rows.height


def _made(
    config: Config,
    part: str,
    made_from: dict[str, Any],
    rows: "_Texts | _Users",
    train: Train,
) -> Path:
    """The folder of a part, made and put in its place in one step if it is not there."""
    folder = Path(config.work).resolve() / "pretrained" / f"{part}-{short_digest(made_from)}"
    if folder.exists():
        say(f"pretrain: {folder.name} is already there")
        return folder
    with in_one_step(folder) as staged:
        (staged / ROWS).mkdir()
        write = _Write(rows, staged / ROWS)
        count = sum(over(rows.tables.buckets, write, f"pretrain {part}"))
        if count == 0:
            what = "text" if part == "text" else "user with two events"
            raise UserError(f"pretrain.{part}: there is no {what} before {made_from['until']}")
        losses = _trained(part, train, config, staged)
        made_from |= {"rows": count, "losses": losses}
        (staged / MADE_FROM).write_text(json.dumps(made_from, indent=1), encoding="utf-8")
        shutil.rmtree(staged / ROWS)
    say(f"pretrain: {folder.name}: {count} rows, loss {losses[0]:.3f} … {losses[-1]:.3f}")
    return folder


def _trained(part: str, train: Train, config: Config, staged: Path) -> list[float]:
    """Run the training in a task, on a GPU as `train.gpu` says; each epoch's loss."""
    with watched(f"pretrain {part}") as board:
        task = _run.options(num_gpus=int(on_gpus(config.train.gpu)))
        return result_of(task.remote(train, config, staged, board))


@ray.remote(num_cpus=1)
def _run(train: Train, config: Config, staged: Path, board: Any) -> list[float]:
    return train(config, staged, board)


def _train_text(config: Config, staged: Path, board: Any) -> list[float]:
    asked = config.pretrain.text
    assert asked is not None
    texts = _rows(staged)["text"].unique().sort().to_list()
    encoder, tokenizer, losses = pretrain_text(
        texts, asked, config.network.text.layers, config.features.max_tokens, config.seed,
        _device(config), _progress(board),
    )  # fmt: skip
    encoder.save_pretrained(staged)
    tokenizer.save_pretrained(str(staged))
    return losses


def _train_behaviour(
    spec: TowerSpec, stats: Stats, config: Config, staged: Path, board: Any
) -> list[float]:
    asked = config.pretrain.behaviour
    assert asked is not None
    tower, losses = pretrain_events(
        _rows(staged), stats, spec, config.network.dropout, asked, config.seed, _device(config),
        _progress(board),
    )  # fmt: skip
    save_tower(staged, tower, spec)
    return losses


def _rows(staged: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(f) for f in sorted((staged / ROWS).iterdir())])


def _device(config: Config) -> torch.device:
    torch.set_num_threads(os.cpu_count() or 1)
    return torch.device("cuda" if on_gpus(config.train.gpu) else "cpu")


def _progress(board: Any) -> Callable[[int, int], None]:
    def progress(step: int, steps: int) -> None:
        if step % STEPS_A_REPORT == 0:
            board.at.remote(step, steps)

    return progress
