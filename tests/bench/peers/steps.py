"""What every peer of the data plane is asked to do, and what is common to their runs.

Ingest: reject rows without a user, with an amount that is not finite or with a time in the future;
read local times as UTC; replace user and counterparty ids by the first 64 bits of an HMAC-SHA256;
redact texts by the same patterns; keep each event once; bucket by the top bits of the user's key;
sort each bucket by user and time; write zstd Parquet, one folder a bucket, beside the rejected rows
and the identities; commit one Delta version.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction

E = TypeVar("E")

SMALL_BUCKETS = 2

SECRET = b"a secret of the measurement"
BLOCK = 64  # bytes of a SHA-256 block; the secret is shorter
INNER = bytes(b ^ 0x36 for b in SECRET.ljust(BLOCK, b"\0"))
OUTER = bytes(b ^ 0x5C for b in SECRET.ljust(BLOCK, b"\0"))
COLUMNS = (
    "user_key", "event_id", "event_time", "available_at", "utc_offset_min", "event_type", "item",
    "category", "counterparty_key", "amount", "currency", "text",
)  # fmt: skip


def commit(folder: Path) -> None:
    """One Delta version of the Parquet files under `folder`, in `bucket=…` folders."""
    files = sorted(folder.glob("bucket=*/*.parquet"))
    actions = [
        AddAction(
            path=str(file.relative_to(folder)),
            size=file.stat().st_size,
            partition_values={"bucket": file.parent.name.removeprefix("bucket=")},
            modification_time=int(time.time() * 1000),
            data_change=True,
            stats=json.dumps({"numRecords": pq.read_metadata(file).num_rows}),
        )
        for file in files
    ]
    schema = pq.read_schema(files[0])
    if "bucket" not in schema.names:
        schema = schema.append(pa.field("bucket", pa.int32()))
    table = DeltaTable.create(str(folder), schema, partition_by=["bucket"])
    table.create_write_transaction(actions, "append", schema, ["bucket"])


def main(
    start: Callable[[], E],
    work: Callable[[E, Path, Path, int], dict[str, int]],
    more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Run a peer on `sys.argv`; print its seconds, counts and memory, and `more` of its own.

    Arguments: a small input, the input, the output, how many buckets. `start` brings the engine
    up, which then does the whole work once on the small input. Both are not timed.
    """
    small, source, out = (Path(argument) for argument in sys.argv[1:4])
    engine = start()
    (out / "small").mkdir(parents=True)
    (out / "whole").mkdir()
    work(engine, small, out / "small", SMALL_BUCKETS)
    with Memory() as memory:
        began = time.perf_counter()
        counts = work(engine, source, out / "whole", int(sys.argv[4]))
        seconds = time.perf_counter() - began
    figures = {"seconds": seconds, "counts": counts, "peak_gib": memory.peak / 2**30}
    print(json.dumps(figures | more()))


class Memory:
    """The most resident memory of any one process among this one and its descendants."""

    def __init__(self, every_s: float = 0.2) -> None:
        self.peak = 0
        self._every, self._stop = every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process(os.getpid())
        while not self._stop.wait(self._every):
            for process in (me, *me.children(recursive=True)):
                try:
                    memory = process.memory_info()
                except psutil.Error:
                    continue
                self.peak = max(self.peak, memory.rss - memory.shared)
