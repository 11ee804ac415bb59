"""A simulated marketplace as the demo's, in a folder of its own."""

from pathlib import Path
from typing import Any

from ray_jobs.config import Config, load
from ray_jobs.demo import prepare


def config_in(folder: Path, users: int, **train_loop: Any) -> Config:
    """The demo's configuration with everything under `folder`, which is made with its secrets.

    It lies there as `config.json` too. `train_loop`: keys of `train.loop`.
    """
    keys = {
        "lake": folder / "lake",
        "work": folder,
        "secret_file": folder / "secret",
        "oracle": "null",
        "simulate.users": users,
        "sources.events.path": folder / "raw/events/*/*.parquet",
        **{f"train.loop.{name}": value for name, value in train_loop.items()},
    }
    for table in ("users", "protected", "edges", "labels"):
        keys[f"sources.{table}.path"] = folder / f"raw/{table}/*.parquet"
    config = load("demo", [f"{key}={value}" for key, value in keys.items()])
    folder.mkdir()
    prepare(config)
    (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    return config
