"""`simulate`: a marketplace with a known answer, written as a shop's own files.

Blocks of users are simulated as Ray tasks. What they write depends on the configuration alone, so
the files are the same, byte for byte, on any cluster.
"""

import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import ray
from pyarrow import fs

from models.data.schema import UserError
from ray_jobs.market.block import simulate_block
from ray_jobs.market.tables import SCHEMAS, block_tables
from ray_jobs.market.world import (
    CURRENCY,
    TIMEZONE,
    WORLD_VERSION,
    SimulateConfig,
    world_sha256,
)
from ray_jobs.progress import bar, console, say
from ray_jobs.storage import filesystem, put

MANIFEST = "simulation.json"
PART_BLOCKS = 4  # 2,000 users a file; fixed, so that files do not depend on the cluster
LOG_LINES = 10


def simulate(config: SimulateConfig, out: str) -> dict[str, int]:
    """Write the marketplace under `out`; the rows of each table, and how many events have texts.

    Files, Parquet, columns as in `tables.SCHEMAS`: `events/YYYY-MM/part-NNNNN.parquet` by local
    month; `users/`, `protected/`, `edges/`, `labels/` and `oracle/` with a file a part of users;
    `simulation.json` with the configuration, the version and hash of the world, and the counts.
    `out` is a folder that all nodes of the cluster share, or an s3:// or gs:// address. The same
    simulation may be written again, over what a broken run left. Ray must be initialised.

    Raises UserError when `out` holds files of anything else.
    """
    _claim(config, out)
    parts = -(-config.blocks // PART_BLOCKS)
    task = ray.remote(num_cpus=1)(write_part)
    running = [task.remote(config, part, out) for part in range(parts)]
    counts: Counter[str] = Counter()
    for rows in _shown(_finished(running), parts):
        counts.update(rows)
    result = {name: counts[name] for name in (*SCHEMAS, "texts")}
    _describe(config, out, result)
    shown = ", ".join(f"{count:,} {name}" for name, count in result.items())
    say(f"simulate: {shown}")
    return result


def write_part(config: SimulateConfig, part: int, out: str) -> dict[str, int]:
    """Simulate the blocks of a part and write its files, each whole or not at all; row counts."""
    first = part * PART_BLOCKS
    numbers = range(first, min(first + PART_BLOCKS, config.blocks))
    blocks = [block_tables(simulate_block(config, number)) for number in numbers]
    counts = {}
    for name in SCHEMAS:
        frame = pl.concat([tables[name] for tables in blocks])
        counts[name] = frame.height
        if name != "events":
            put(_parquet(frame), f"{out}/{name}/part-{part:05d}.parquet")
            continue
        counts["texts"] = frame.height - frame["text"].null_count()
        dated = frame.with_columns(month=pl.col("time").dt.strftime("%Y-%m"))
        for rows in dated.partition_by("month"):
            folder = f"{out}/events/{rows.item(0, 'month')}"
            put(_parquet(rows.drop("month")), f"{folder}/part-{part:05d}.parquet")
    return counts


def _parquet(frame: pl.DataFrame) -> bytes:
    sink = io.BytesIO()
    pq.write_table(frame.to_arrow(), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _finished(running: list[Any]) -> Iterator[dict[str, int]]:
    """The results of tasks as they come in."""
    while running:
        done, running = ray.wait(running)
        yield from ray.get(done)


def _shown(results: Iterator[dict[str, int]], total: int) -> Iterator[dict[str, int]]:
    """The same results, with a bar in a terminal and at most ten lines in a log."""
    with bar() as bars:
        task = bars.add_task("simulate", total=total)
        for done, result in enumerate(results, start=1):
            bars.update(task, completed=done)
            line_is_due = done * LOG_LINES // total > (done - 1) * LOG_LINES // total
            if line_is_due and not console.is_terminal:
                say(f"simulate: {done} of {total} parts")
            yield result


def world_of(oracle: str) -> str:
    """Version and hash of the world whose `oracle/` files these are; of other files, not known."""
    system, inner = filesystem(posixpath.dirname(posixpath.dirname(oracle)) or ".")
    world = (_manifest(system, inner) or {}).get("world")
    return "unknown" if world is None else f"version {world['version']}, {world['sha256']}"


def _manifest(system: fs.FileSystem, inner: str) -> dict[str, Any] | None:
    """What a simulation says of itself in its folder; None where there is none."""
    path = f"{inner}/{MANIFEST}"
    if system.get_file_info(path).type != fs.FileType.File:
        return None
    with system.open_input_file(path) as file:
        content: dict[str, Any] = json.loads(file.read())
    return content


def _claim(config: SimulateConfig, out: str) -> None:
    """Mark the folder as this simulation's before anything is written to it."""
    system, inner = filesystem(out)
    found = system.get_file_info(inner)
    if found.type == fs.FileType.File:
        raise UserError(f"{out}: is a file; a folder for the simulation was expected")
    if found.type == fs.FileType.Directory and system.get_file_info(fs.FileSelector(inner)):
        before = _manifest(system, inner)
        if before is None:
            raise UserError(f"{out}: is not empty and holds no {MANIFEST}; choose another folder")
        if {k: before[k] for k in ("world", "config")} != _identity(config):
            raise UserError(f"{out}: holds another simulation; remove it or choose another folder")
    _describe(config, out, None)


def _identity(config: SimulateConfig) -> dict[str, Any]:
    world = {"version": WORLD_VERSION, "sha256": world_sha256()}
    return {"world": world, "config": config.model_dump(mode="json")}


def _describe(config: SimulateConfig, out: str, counts: dict[str, int] | None) -> None:
    """Write the manifest; `counts` are null until every part is written."""
    units = {"timezone": TIMEZONE, "currency": CURRENCY}
    content = {**_identity(config), **units, "counts": counts}
    put(json.dumps(content, indent=2, sort_keys=True).encode(), f"{out}/{MANIFEST}")
