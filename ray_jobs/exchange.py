"""Rows change hands through storage: each task writes one file, with one block a bucket.

A block is an Arrow IPC stream (lz4), found by its place in the file and known by its CRC-32. The
file's name ends with a hash of its content: when a worker dies after it has handed its blocks on,
Ray runs the task again, and the same rows in another order must not overwrite those blocks.
"""

import hashlib
import io
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
from pyarrow import fs

from ray_jobs.storage import filesystem, put

STAGING = "_staging-"  # how the name of a folder begins that tasks exchange files in


@dataclass(frozen=True)
class Block:
    """Where the rows of one bucket lie."""

    path: str
    offset: int
    length: int
    crc32: int


@contextmanager
def exchange_folder(root: str) -> Iterator[str]:
    """A folder under a root for the files that tasks exchange; afterwards it is gone."""
    folder = f"{root}/{STAGING}{uuid.uuid4().hex}"
    try:
        yield folder
    finally:
        system, inner = filesystem(folder)
        if system.get_file_info(inner).type == fs.FileType.Directory:
            system.delete_dir(inner)


def write_blocks(frame: pl.DataFrame, path: str) -> dict[int, Block]:
    """Write rows as a file `path`-hash of blocks, whole or not at all; bucket → block.

    `frame` has a column `bucket`, the blocks have not; the rows of a bucket keep their order.
    """
    places: dict[int, tuple[int, int, int]] = {}
    content = io.BytesIO()
    parts = frame.partition_by("bucket", maintain_order=True, include_key=False, as_dict=True)
    for (bucket,), rows in parts.items():
        start = content.tell()
        rows.write_ipc_stream(content, compression="lz4")
        crc32 = zlib.crc32(content.getbuffer()[start:])
        places[int(bucket)] = start, content.tell() - start, crc32
    named = f"{path}-{hashlib.sha256(content.getbuffer()).hexdigest()[:16]}"
    if places:
        put(content.getbuffer(), named)
    return {bucket: Block(named, *place) for bucket, place in places.items()}


def read_blocks(blocks: Sequence[Block], columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The rows of one block or more, in order. Raises OSError when a byte is not as written."""
    return pl.concat([_read(block, columns) for block in blocks])


def _read(block: Block, columns: Sequence[str] | None) -> pl.DataFrame:
    system, inner = filesystem(block.path)
    with system.open_input_file(inner) as file:
        file.seek(block.offset)
        content = file.read(block.length)
    if zlib.crc32(content) != block.crc32:
        raise OSError(f"{block.path}: the bytes at {block.offset} are not those written")
    rows = pl.read_ipc_stream(content)
    return rows if columns is None else rows.select(columns)
