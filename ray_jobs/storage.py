"""Parquet files, on a disk or in an object store: written whole, read with every page verified.

And folders on a disk that come into being in one step.
"""

import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from models.data.schema import Table, UserError

STAGING_KEPT = timedelta(days=1)  # a folder in which nothing was written for so long is dead
FILES_AT_ONCE = 8  # that a process reads or moves: an object store answers each slowly
_STORES = ("s3", "gs")  # what follows in their URLs is a bucket, and a key as it stands
_SAMPLE = 10_000  # rows that tell whether a column is worth a dictionary


@dataclass(frozen=True)
class DataFile:
    """A Parquet file that was written whole: where it lies and what is in it."""

    path: str  # absolute, or a URL
    rows: int
    bytes: int
    sha256: str


def absolute(path: str) -> str:
    """A URL as it is, a local path from the root."""
    return path if "://" in path else os.path.abspath(path)


def filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URL (s3://, gs://), and the path on it. Raises UserError.

    Where S3 is and who asks come from the environment: AWS_ENDPOINT_URL, AWS_REGION,
    AWS_ACCESS_KEY_ID and so on, which deltalake reads as well.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(path)
    scheme, _, rest = path.partition("://")
    if scheme not in _STORES:
        return _of_uri(path)
    # only the bucket is read as a URI: a key may hold a space, a bracket or a percent sign
    place, mark, options = rest.partition("?")
    bucket, _, key = place.partition("/")
    system, root = _of_uri(f"{scheme}://{bucket}{mark}{options}")
    return system, f"{root}/{key}".rstrip("/")


def _of_uri(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        system, inner = fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        reason = one_line(error)
        raise UserError(f"{uri}: expected a path, or an s3:// or gs:// URL ({reason})") from error
    return system, inner


def partition_of(path: str) -> dict[str, str]:
    """The partition values in a path's last folders: `…/bucket=3/x.parquet` → {"bucket": "3"}."""
    folders = itertools.takewhile(lambda folder: "=" in folder, reversed(path.split("/")[:-1]))
    pairs = [folder.partition("=") for folder in folders]
    return {name: value for name, _, value in reversed(pairs)}


def write_file(frame: pl.DataFrame, table: Table, path: str) -> DataFile:
    """Write rows as one Parquet file, whole or not at all: zstd, page checksums.

    The columns and types are the table's, without those that the path's folders give. The same
    rows give the same bytes.
    """
    content = encode(frame, table, partition_of(path))
    put(content, path)
    return DataFile(absolute(path), frame.height, len(content), hashlib.sha256(content).hexdigest())


def read_file(path: str, *, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read a Parquet file, or some of its columns, verifying page checksums.

    Columns that the file does not have are left out. Raises OSError when the file cannot be read
    or a byte is not the one that was written.
    """
    system, inner = filesystem(path)
    try:
        with system.open_input_file(inner) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            there = file.schema_arrow.names
            names = there if columns is None else [c for c in columns if c in there]
            rows = file.read(columns=names)
    except (pa.ArrowException, OSError) as error:
        raise OSError(f"{path}: {error}") from error
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame


def rows_of(file: Mapping[str, Any], types: pl.Schema) -> pl.DataFrame:
    """The rows of one of `Lake.files`, with its partition's values; null for an absent column."""
    rows = read_file(file["path"], columns=list(types))
    values = {n: v for n, v in file["partition"].items() if n in types}
    absent = {n: None for n in types if n not in rows.columns and n not in values}
    added = {n: pl.lit(v, dtype=types[n]) for n, v in (values | absent).items()}
    height = pl.repeat(None, file["num_records"], dtype=pl.Null, eager=True)
    whole = height.alias("").to_frame().with_columns(*rows.iter_columns(), **added)
    return whole.select(list(types)).cast(types)


def encode(frame: pl.DataFrame, table: Table, partition: dict[str, str]) -> bytes:
    """The bytes of a Parquet file; the metadata of the table's schema stands in its footer."""
    fields = [field for field in table.schema if field.name not in partition]
    schema = pa.schema(fields, metadata=table.schema.metadata)
    rows = frame.select(schema.names)
    sink = pa.BufferOutputStream()
    options = {"compression": "zstd", "write_page_checksum": True}
    with pq.ParquetWriter(sink, schema, use_dictionary=_repetitive(rows), **options) as writer:
        writer.write_table(rows.to_arrow().cast(schema))
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _repetitive(rows: pl.DataFrame) -> list[str]:
    """The columns that a dictionary makes smaller; of others it takes as long as all the rest."""
    sample = rows.head(_SAMPLE)
    return [c for c in rows.columns if sample[c].n_unique() <= sample.height // 4 + 1]


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def put(content: bytes | memoryview, path: str) -> None:
    """Write a file in one step: readers see all of it or none.

    Raises UserError where an object store refuses it, OSError where a disk does.
    """
    system, inner = filesystem(path)
    if not isinstance(system, fs.LocalFileSystem):
        try:  # an object appears when its upload is closed
            with system.open_output_stream(inner) as stream:
                stream.write(content)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {one_line(error)}") from error
        return
    folder, name = os.path.split(inner)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, inner)
    except OSError:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


@contextmanager
def in_one_step(folder: Path) -> Iterator[Path]:
    """A folder to write into, put at `folder` when the block ends without an error.

    Of two jobs that make the same at one time each has its own, and the first one's stays. What
    a killed job left goes when nothing has been written to it for a day.
    """
    local, oldest = fs.LocalFileSystem(), datetime.now(UTC) - STAGING_KEPT
    for left in folder.parent.glob(f".{folder.name}.*"):
        if last_written(local, local.get_file_info(str(left))) <= oldest:
            shutil.rmtree(left, ignore_errors=True)
    staged = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    staged.mkdir(parents=True)
    try:
        yield staged
        try:
            os.replace(staged, folder)
        except OSError:
            if not folder.is_dir():  # else another job was first
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def last_written(system: fs.FileSystem, folder: fs.FileInfo) -> datetime:
    """When anything was last written in a folder; in an object store folders have no times."""
    inner = fs.FileSelector(folder.path, allow_not_found=True, recursive=True)
    times = [info.mtime for info in [folder, *system.get_file_info(inner)]]
    last: datetime = max(time for time in times if time is not None)
    return last


def short_digest(parts: Any) -> str:
    """A name for what plain values determine: 16 digits of the SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(path: str) -> tuple[int, str]:
    """The size and SHA-256 of a file. Raises OSError when it cannot be read."""
    system, inner = filesystem(path)
    digest, size = hashlib.sha256(), 0
    with system.open_input_stream(inner, compression=None) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def digest_if_there(path: str) -> tuple[int, str] | None:
    """The same; None when there is no such file."""
    try:
        return digest_of(path)
    except FileNotFoundError:
        return None


def move(path: str, target: str) -> None:
    """Move a file to another place on the same file system, over what may lie there.

    In an object store it is copied and then removed; the copy appears whole.
    """
    system, inner = filesystem(path)
    _, end = filesystem(target)
    if isinstance(system, fs.LocalFileSystem):  # elsewhere a folder would be an empty object
        system.create_dir(end.rpartition("/")[0], recursive=True)
    system.move(inner, end)
