"""The user's own files: which ones a source has, and their rows in batches, bad rows set aside.

Parquet keeps its types; a CSV or JSON-lines file is all text. Row numbers count from 1, without
the header. Quotes in CSV follow RFC 4180 to the letter: a parser that forgives an unclosed quote
merges rows without a word.
"""

import csv
import fnmatch
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from models.data.schema import UserError
from models.data.source import Source
from ray_jobs.storage import filesystem

BATCH_ROWS = 500_000  # rows in memory at one time, in one task
_CHUNK_ROWS = 50_000  # rows of text that are Python objects at one time
ENDINGS = (
    (".parquet", "parquet"),
    (".csv", "csv"),
    (".csv.gz", "csv"),
    (".jsonl", "jsonl"),
    (".jsonl.gz", "jsonl"),
)
ALL = "all"  # the period of a source that states none
SAFE = re.compile(r"[A-Za-z0-9._\-]+")  # what a source or a period may be called: they name folders
_TEXT_BYTES, _GZIPPED = 100, 6  # a row of text, about, and how much of it a byte of gzip holds
_MOST_BROKEN = 1_000  # broken quotes in a file, each of which costs a second look at many lines


class UnreadableError(Exception):
    """The file as a whole cannot be read."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source: where it lies, its name below the source's path, its period."""

    source: str
    path: str
    name: str
    period: str
    format: str


@dataclass(frozen=True)
class Slice:
    """A part of a file: row groups of Parquet from a row number on, or a whole text file."""

    file: SourceFile
    groups: tuple[int, ...] = ()
    first_row: int = 1
    rows: int | None = None  # unknown of a text file until it is read


@dataclass(frozen=True)
class Batch:
    """Rows of a file with their numbers (int64), and the rows that are no rows: (number, why)."""

    rows: pl.DataFrame
    numbers: pl.Series
    bad: tuple[tuple[int, str], ...] = ()


def find(name: str, source: Source) -> list[SourceFile]:
    """The files of a source in order of name.

    Raises UserError when there is none, when a single file has no known format, and when a path
    does not give a period.
    """
    system, pattern = filesystem(source.path)
    base, paths = _paths(system, pattern)
    found = []
    for path in sorted(paths):
        short = path.removeprefix(base).lstrip("/")
        kind: str | None = source.format
        kind = kind or next((f for ending, f in ENDINGS if short.endswith(ending)), None)
        if kind is not None:
            period = _period(name, source, path)
            found.append(SourceFile(name, _url(source.path, path), short, period, kind))
        elif path == pattern:
            raise UserError(f"sources.{name}.path {path}: not .parquet, .csv or .jsonl; set format")
    if not found:
        raise UserError(f"sources.{name}.path {source.path}: no files")
    return found


def schema_of(file: SourceFile) -> dict[str, pl.DataType] | None:
    """The columns of a file and their types; None for JSON lines, whose columns show as one reads.

    Raises UnreadableError, and UserError when two columns share a name.
    """
    if file.format == "jsonl":
        return None
    if file.format == "parquet":
        with _parquet(file) as parquet:
            names, schema = parquet.schema_arrow.names, parquet.schema_arrow
    else:
        with _text(file) as stream:
            names, schema = _header(_Lines(stream)), None
    double = [n for n in names if names.count(n) > 1]
    if double:
        raise UserError(f"{file.path}: two columns are called {double[0]!r}")
    return dict(pl.Schema(schema)) if schema else dict.fromkeys(names, pl.String())


def slices(file: SourceFile) -> list[Slice]:
    """The file in parts that tasks can read side by side: row groups, or the whole text file."""
    if file.format != "parquet":
        return [Slice(file)]
    with _parquet(file) as parquet:
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    parts: list[Slice] = []
    start, groups, rows = 1, list[int](), 0
    for group, size in enumerate(sizes):
        if groups and rows + size > BATCH_ROWS:
            parts.append(Slice(file, tuple(groups), start, rows))
            start, groups, rows = start + rows, [], 0
        groups.append(group)
        rows += size
    return [*parts, Slice(file, tuple(groups), start, rows)] if groups else parts


def rows_about(file: SourceFile, size: int, parts: Sequence[Slice]) -> int:
    """About how many rows a file of so many bytes has: exactly, of Parquet."""
    if file.format == "parquet":
        return sum(part.rows or 0 for part in parts)
    return size * (_GZIPPED if file.path.endswith(".gz") else 1) // _TEXT_BYTES


def batches(part: Slice, columns: Sequence[str] | None) -> Iterator[Batch]:
    """The rows of a slice, in batches of at most `BATCH_ROWS`; of Parquet only these columns.

    Raises UnreadableError where the file breaks off.
    """
    if part.file.format == "parquet":
        yield from _parquet_batches(part, columns)
        return
    read = _csv_rows if part.file.format == "csv" else _json_rows
    frames, numbers, bad = list[pl.DataFrame](), list[int](), list[tuple[int, str]]()
    for frame, good, faults in read(part.file):
        frames.append(frame)
        numbers += good
        bad += faults
        if len(numbers) + len(bad) > BATCH_ROWS - _CHUNK_ROWS:
            yield _batch(frames, numbers, bad)
            frames, numbers, bad = [], [], []
    if numbers or bad:
        yield _batch(frames, numbers, bad)


def _batch(frames: list[pl.DataFrame], numbers: list[int], bad: list[tuple[int, str]]) -> Batch:
    rows = pl.concat(frames, how="diagonal")
    empty = rows.select(pl.when(pl.all() != "").then(pl.all()))
    return Batch(empty, pl.Series("row", numbers, dtype=pl.Int64), tuple(bad))


def _parquet_batches(part: Slice, columns: Sequence[str] | None) -> Iterator[Batch]:
    start = part.first_row
    with _parquet(part.file) as parquet:
        names = None if columns is None else list(columns or parquet.schema_arrow.names[:1])
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=list(part.groups), columns=names):
            rows = pl.from_arrow(pa.Table.from_batches([batch]))
            assert isinstance(rows, pl.DataFrame)
            yield Batch(rows, pl.int_range(start, start + rows.height, eager=True).alias("row"))
            start += rows.height


_Chunk = tuple[pl.DataFrame, list[int], list[tuple[int, str]]]


def _csv_rows(file: SourceFile) -> Iterator[_Chunk]:
    """Chunks of rows as text, their numbers, and the rows whose quotes or width are wrong."""
    with _text(file) as stream:
        lines = _Lines(stream)
        header = _header(lines)
        rows, numbers, bad = list[list[str]](), list[int](), list[tuple[int, str]]()
        for number, record in enumerate(_records(lines, len(header)), start=1):
            if record is None:
                bad.append((number, "broken quotes"))
            elif len(record) != len(header):
                bad.append((number, f"{len(record)} values, the header has {len(header)}"))
            else:
                rows.append(record)
                numbers.append(number)
            if len(rows) + len(bad) == _CHUNK_ROWS:
                yield _table(header, rows), numbers, bad
                rows, numbers, bad = [], [], []
        yield _table(header, rows), numbers, bad


def _table(header: list[str], rows: list[list[str]]) -> pl.DataFrame:
    columns = zip(*rows, strict=True) if rows else itertools.repeat(())
    named = zip(header, columns, strict=False)
    return pl.DataFrame({name: pl.Series(c, dtype=pl.String) for name, c in named})


class _Lines(Iterator[str]):
    """Lines of a file; those that the present record has taken can be put back."""

    def __init__(self, stream: Iterator[str]) -> None:
        self.stream, self.back, self.taken = stream, list[str](), list[str]()

    def __next__(self) -> str:
        line = self.back.pop() if self.back else next(self.stream)
        self.taken.append(line)
        return line

    def put_back(self, keep: int) -> None:
        self.back.extend(reversed(self.taken[keep:]))


def _header(lines: _Lines) -> list[str]:
    try:
        return next(csv.reader(lines, strict=True))
    except StopIteration:
        raise UnreadableError("the file is empty") from None
    except csv.Error as error:
        raise UnreadableError(f"the header has broken quotes ({error})") from error


def _records(lines: _Lines, width: int) -> Iterator[list[str] | None]:
    """The records after the header; None for a line whose quotes are broken.

    After an unclosed quote reading goes on at the next line, not where the quote seems to end. A
    record over several lines each of which would do as a row alone is held for an unclosed quote.
    """
    reader = csv.reader(lines, strict=True)
    broken = 0
    while True:
        lines.taken.clear()
        try:
            record = next(reader, None)
            if record is None:
                return
            whole = len(lines.taken) == 1 or not _rows_by_themselves(lines.taken, width)
        except csv.Error:
            whole = False
        if whole and record:
            yield record
        elif not whole:
            broken += 1
            if broken > _MOST_BROKEN:
                raise UnreadableError(f"broken quotes in more than {_MOST_BROKEN:,} rows")
            lines.put_back(1)
            reader = csv.reader(lines, strict=True)
            yield None


def _rows_by_themselves(lines: list[str], width: int) -> bool:
    return width > 1 and all(line.count(",") == width - 1 for line in lines)


def _json_rows(file: SourceFile) -> Iterator[_Chunk]:
    """Chunks of objects, one a line, as columns of text; numbers keep their digits."""
    with _text(file) as stream:
        rows, numbers, bad = list[dict[str, str | None]](), list[int](), list[tuple[int, str]]()
        decode = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).decode
        lines = (line for line in stream if not line.isspace())
        for number, line in enumerate(lines, start=1):
            try:
                record = decode(line)
            except (ValueError, RecursionError):
                bad.append((number, "not JSON"))
            else:
                if isinstance(record, dict):
                    rows.append({name: _as_text(value) for name, value in record.items()})
                    numbers.append(number)
                else:
                    bad.append((number, "not a JSON object"))
            if len(rows) + len(bad) == _CHUNK_ROWS:
                yield _columns(rows), numbers, bad
                rows, numbers, bad = [], [], []
        yield _columns(rows), numbers, bad


def _columns(rows: list[dict[str, str | None]]) -> pl.DataFrame:
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return pl.DataFrame({n: pl.Series([r.get(n) for r in rows], dtype=pl.String) for n in names})


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _paths(system: fs.FileSystem, pattern: str) -> tuple[str, list[str]]:
    """The folder that names are relative to, and the files of a path, folder or glob."""
    info = system.get_file_info(pattern)
    if info.type == fs.FileType.File:
        return pattern.rpartition("/")[0], [pattern]
    base = pattern
    if info.type == fs.FileType.NotFound:
        base = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    below = system.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=True))
    names = [f.path for f in below if f.type == fs.FileType.File]
    seen = [n for n in names if not re.search(r"/[._]", n.removeprefix(base))]
    return base, seen if base == pattern else [n for n in seen if _matches(n, pattern)]


def _matches(path: str, pattern: str) -> bool:
    """Whether a glob means this path; `*` stays within a folder, `**` does not."""
    deep = "**" in pattern or path.count("/") == pattern.count("/")
    return deep and fnmatch.fnmatchcase(path, pattern.replace("**/", "*"))


def _url(given: str, path: str) -> str:
    """A path on the file system of a given path or URL, in the same form."""
    if "://" not in given:
        return path
    scheme, _, rest = given.partition("://")
    _, mark, query = rest.partition("?")
    return f"{scheme}://{path}{mark}{query}"


def _period(name: str, source: Source, path: str) -> str:
    if source.period is None:
        return ALL
    match = re.search(source.period, path)
    if match is None or not match.groups() or not SAFE.fullmatch(match[1] or ""):
        raise UserError(
            f"sources.{name}.period {source.period!r}: {path} gives no period in its first group "
            "(letters, digits, '.', '_' and '-')"
        )
    return match[1]


@contextmanager
def _parquet(file: SourceFile) -> Iterator[pq.ParquetFile]:
    system, path = filesystem(file.path)
    try:
        with system.open_input_file(path) as stream:
            yield pq.ParquetFile(stream, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError(f"not a whole Parquet file ({str(error).splitlines()[0]})") from error


@contextmanager
def _text(file: SourceFile) -> Iterator[io.TextIOWrapper]:
    """A text file, opened; gzip by Python's module, as Arrow's takes a file cut short for whole."""
    system, path = filesystem(file.path)
    try:
        with (
            system.open_input_stream(path, compression=None) as raw,
            gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else nullcontext(raw) as plain,
            io.TextIOWrapper(plain, encoding="utf-8-sig", newline="") as text,
        ):
            yield text
    except UnicodeDecodeError as error:
        raise UnreadableError("not UTF-8 text") from error
    except (EOFError, zlib.error, pa.ArrowException, OSError) as error:
        raise UnreadableError(str(error).splitlines()[0]) from error
