"""The lake: Delta tables, published exactly once, read with every page verified.

    <root>/<table>/source=…/period=…/bucket=…/part-<hash>.parquet

Data files do not count until a commit names them. A commit carries a Delta transaction of an
application, which names what is published (table, source and period; never the run), and a
generation; deltalake alone would land a second commit of both from a fresh handle.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import fs

from models.data.buckets import overlap, within
from models.data.clean import each_once
from models.data.schema import PARTITIONS, Table, UserError
from ray_jobs.runs import RUNS, Accounts
from ray_jobs.storage import (
    FILES_AT_ONCE,
    DataFile,
    absolute,
    digest_if_there,
    encode,
    filesystem,
    move,
    partition_of,
    put,
    read_file,
    rows_of,
    write_file,
)

__all__ = ["RUNS", "DataFile", "Lake", "read_file", "write_file"]

_ATTEMPTS = 20  # races that a commit may lose; after each the table is looked at again


@dataclass(frozen=True)
class Lake(Accounts):
    """The tables under a folder or an s3:// or gs:// URL. Cheap to send to a task."""

    root: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", absolute(self.root).rstrip("/"))

    def url(self, *parts: str) -> str:
        """The path or URL of something in the lake."""
        return "/".join([self.root, *parts])

    def exists(self, table: str) -> bool:
        """Whether the lake has this table."""
        return bool(DeltaTable.is_deltatable(self.url(table)))

    def version(self, table: str) -> int:
        """The newest version of a table. Raises UserError when there is no such table."""
        return self._open(table).version()

    def versions(self) -> dict[str, int]:
        """The newest version of every table but `runs`."""
        system, root = filesystem(self.root)
        found = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
        names = sorted(f.base_name for f in found if f.type == fs.FileType.Directory)
        return {n: self.version(n) for n in names if n != RUNS.name and self.exists(n)}

    def files(
        self, table: str, *, version: int | None = None, where: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """The data files of a table's version whose partition values equal `where`.

        Each with `path` (absolute), `num_records`, `bytes` and `partition` (a dict), in order of
        path.
        """
        return self._files(table, self._open(table, version), where or {})

    def table(self, name: str, sort: tuple[str, ...] = ()) -> Table:
        """A table as it stands in the lake. Raises UserError when there is no such table."""
        schema = pa.schema(self._open(name).schema().to_arrow())
        return Table(name=name, schema=schema, key=(), sort=sort, required=())

    def rows(self, table: Table, file: Mapping[str, Any]) -> pl.DataFrame:
        """The rows of one of a table's `files`, in the table's columns."""
        return rows_of(file, pl.Schema(table.schema))

    def read(
        self,
        table: str,
        *,
        version: int | None = None,
        bucket: int | None = None,
        where: Mapping[str, Any] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """The rows of a table's version (the newest by default), file after file.

        `bucket` (of users) and `where` (column → value) choose rows; by a partition column they
        choose files. Raises UserError when there is no such table, OSError when a file is not
        what was written.
        """
        delta = self._open(table, version)
        schema = pl.Schema(pa.schema(delta.schema().to_arrow()))
        wanted = dict(where or {})
        by = delta.metadata().partition_columns
        chosen = {name: value for name, value in wanted.items() if name in by}
        matching = [pl.col(n) == v for n, v in wanted.items() if n not in by]
        shown = list(schema if columns is None else columns)
        keyed = [] if bucket is None else ["user_key"]
        names = list(dict.fromkeys([*shown, *keyed, *(n for n in wanted if n not in by)]))
        types = pl.Schema({name: schema[name] for name in names})
        frames = [pl.DataFrame(schema=types)]
        for file in self._files(table, delta, chosen):
            held = file["partition"].get("bucket", 1)
            if bucket is None or overlap(held, bucket):
                rows = rows_of(file, types).filter(*matching)
                frames.append(rows if bucket is None else within(rows, held, bucket))
        return pl.concat(frames).select(shown)

    def read_if(
        self,
        table: str,
        versions: Mapping[str, int],
        bucket: int | None,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame | None:
        """The rows of a table at the version that `versions` names (the newest when it is empty);
        None where it names none, or the lake has no such table."""
        if (versions and table not in versions) or not self.exists(table):
            return None
        return self.read(table, version=versions.get(table), bucket=bucket, columns=columns)

    def events(self, bucket: int, versions: Mapping[str, int]) -> pl.DataFrame:
        """The events of a bucket's users as `each_once` gives them."""
        return each_once(self.read("events", version=versions["events"], bucket=bucket))

    def write_part(
        self, table: Table, frame: pl.DataFrame, partition: Mapping[str, Any]
    ) -> DataFile:
        """Write rows as a data file that is named by its content; not yet published."""
        folder = "/".join([table.name, *(f"{name}={value}" for name, value in partition.items())])
        content = encode(frame, table, {name: str(v) for name, v in partition.items()})
        digest = hashlib.sha256(content).hexdigest()
        path = self.url(folder, f"part-{digest[:32]}.parquet")
        put(content, path)
        return DataFile(path, frame.height, len(content), digest)

    def adopt(self, files: Sequence[DataFile], root: str) -> list[DataFile]:
        """Move data files written under another root into this lake; not yet published."""

        def moved(file: DataFile) -> DataFile:
            assert file.path.startswith(f"{root}/"), f"{file.path} is not in {root}"
            path = self.url(file.path.removeprefix(f"{root}/"))
            move(file.path, path)
            return dataclasses.replace(file, path=path)

        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            return list(pool.map(moved, files))

    def generation(self, table: str, app: str, version: int | None = None) -> int:
        """The generation of an application published last (or by a version); 0: there is none."""
        if not self.exists(table):
            return 0
        return self._open(table, version).transaction_version(app) or 0

    def holds(self, table: str, files: Sequence[DataFile], where: Mapping[str, Any]) -> bool:
        """Whether the partitions `where` of a table consist of exactly these files."""
        if not self.exists(table):
            return False
        return {f["path"] for f in self.files(table, where=where)} == {f.path for f in files}

    def publish(
        self,
        table: Table,
        *,
        app: str,
        generation: int,
        files: Sequence[DataFile],
        replace: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Publish files in one commit, exactly once; the table's newest version.

        Does nothing when this generation of the application, or a later one, is published.
        `replace` names the partitions whose earlier files the commit removes. The commit's
        metadata holds the SHA-256 of each file. A column that the files lack stays the table's.
        Raises UserError, and publishes nothing, when a file is missing or not what was written.
        """
        if self.generation(table.name, app) >= generation:
            return self.version(table.name)
        self._verify(files)
        self._ensure(table, files, replace or {})
        actions = [self._action(table.name, file) for file in files]
        hashes = {action.path: file.sha256 for action, file in zip(actions, files, strict=True)}
        notes = {k: json.dumps(v) for k, v in {**(metadata or {}), "sha256": hashes}.items()}
        filters = None if replace is None else [(k, "=", str(v)) for k, v in replace.items()]
        for _ in range(_ATTEMPTS):
            delta = self._open(table.name)
            if (delta.transaction_version(app) or 0) >= generation:
                break
            held = pa.schema(delta.schema().to_arrow())
            try:
                # the handle just asked, not reloaded: a commit in between makes this one fail
                delta.create_write_transaction(
                    list(actions),
                    "append" if filters is None else "overwrite",
                    pa.schema(
                        [*held, *(one for one in table.schema if one.name not in held.names)]
                    ),
                    delta.metadata().partition_columns,
                    filters,
                    commit_properties=CommitProperties(
                        custom_metadata=notes, app_transactions=[Transaction(app, generation)]
                    ),
                )
                break
            except CommitFailedError:
                continue
        else:
            raise RuntimeError(f"{app}: lost {_ATTEMPTS} races for table {table.name}")
        return self.version(table.name)

    def replace(
        self,
        table: Table,
        *,
        app: str,
        files: Sequence[DataFile],
        where: Mapping[str, str],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the partitions `where` consist of exactly these files, in one commit.

        Does nothing when they do already. Raises UserError as `publish` does, and when another
        job has just published other files.
        """
        if self.holds(table.name, files, where):
            return
        generation = self.generation(table.name, app) + 1
        self.publish(
            table, app=app, generation=generation, files=files, replace=where, metadata=metadata
        )
        if not self.holds(table.name, files, where):
            raise UserError(f"{app}: another job published other rows at this moment; run again")

    def rewrite(
        self,
        table: str,
        *,
        app: str,
        gone: Sequence[str],
        files: Sequence[DataFile],
        metadata: Mapping[str, Any],
    ) -> bool:
        """Put `files` in the place of the data files `gone` (paths), in one commit.

        False, and nothing is published, when one of those is not in the table any more: another
        job has replaced it. Compaction, too, commits its actions as changes of data: deltalake
        1.6.6 does not hold a commit without them against a competing one, so that an ingest which
        replaces the partition at the same moment would leave its rows there twice.
        """
        self._verify(files)
        for _ in range(_ATTEMPTS):
            delta = self._open(table)
            there = {file["path"]: file for file in self._files(table, delta, {})}
            if not there.keys() >= set(gone):
                return False
            new = {f.path: f for f in files if f.path not in gone}
            assert not there.keys() & new.keys(), "a new file of the same rows as another's"
            old = [there[path] for path in gone if path not in {f.path for f in files}]
            if not new and not old:
                return True
            if self._commit_rewrite(table, delta, app, old, list(new.values()), metadata):
                return True
        raise RuntimeError(f"{app}: lost {_ATTEMPTS} races for table {table}")

    def _commit_rewrite(
        self,
        table: str,
        delta: DeltaTable,
        app: str,
        old: Sequence[Mapping[str, Any]],
        new: Sequence[DataFile],
        metadata: Mapping[str, Any],
    ) -> bool:
        """Commit on this handle; False when a competing commit came first."""
        adds = [self._action(table, file) for file in new]
        removes = [
            RemoveAction(
                file["path"].removeprefix(self.url(table) + "/"),
                True,
                int(time.time() * 1000),
                file["bytes"],
                {name: str(value) for name, value in file["partition"].items()},
            )
            for file in old
        ]
        hashes = {action.path: file.sha256 for action, file in zip(adds, new, strict=True)}
        notes = {k: json.dumps(v) for k, v in {**metadata, "sha256": hashes}.items()}
        once = Transaction(app, (delta.transaction_version(app) or 0) + 1)
        try:
            delta.create_write_transaction(
                [*adds, *removes],
                "append",
                delta.schema(),
                delta.metadata().partition_columns,
                commit_properties=CommitProperties(custom_metadata=notes, app_transactions=[once]),
            )
        except CommitFailedError:
            return False
        return True

    def append_rows(self, table: Table, frame: pl.DataFrame, *, app: str) -> int:
        """Add a few rows to a small table (`runs`, `models`), once for an application."""
        if self.generation(table.name, app) >= 1:
            return self.version(table.name)
        file = self.write_part(table, frame, {})
        return self.publish(table, app=app, generation=1, files=[file])

    def _open(self, table: str, version: int | None = None) -> DeltaTable:
        try:
            return DeltaTable(self.url(table), version=version)
        except TableNotFoundError as error:
            raise UserError(
                f"no table {table} in lake {self.root}: run `raycredit ingest` first"
            ) from error

    def _files(
        self, table: str, delta: DeltaTable, where: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        actions = pl.from_arrow(pa.table(delta.get_add_actions(flatten=True)))
        assert isinstance(actions, pl.DataFrame)
        for name, value in where.items():
            actions = actions.filter(pl.col(f"partition.{name}").cast(pl.String) == str(value))
        by = {name: f"partition.{name}" for name in delta.metadata().partition_columns}
        return [
            {
                "path": self.url(table, unquote(row["path"])),
                "num_records": row["num_records"],
                "bytes": row["size_bytes"],
                "partition": {name: row[column] for name, column in by.items()},
            }
            for row in actions.select("path", "num_records", "size_bytes", *by.values())
            .sort("path")
            .iter_rows(named=True)
        ]

    def _ensure(self, table: Table, files: Sequence[DataFile], replace: Iterable[str]) -> None:
        """Create the table, empty, unless it is there; refuse a column of another type.

        Its files tell what it is partitioned by, else what is to be replaced does.
        """
        url = self.url(table.name)
        if not self.exists(table.name):
            by = list(partition_of(files[0].path[len(url) :])) if files else []
            others = [c for c in PARTITIONS if c in table.schema.names and c not in replace]
            by = by or [*replace, *others]
            DeltaTable.create(url, table.schema, mode="ignore", partition_by=by)
        there = pl.Schema(pa.schema(self._open(table.name).schema().to_arrow()))
        for name, dtype in pl.Schema(table.schema).items():
            if there.get(name, dtype) != dtype:
                raise UserError(
                    f"table {table.name} in lake {self.root}: column {name} is {there[name]}, "
                    f"not {dtype}; use another lake"
                )

    def _verify(self, files: Sequence[DataFile]) -> None:
        """Every file lies where it should and is what was written."""
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            digests = pool.map(digest_if_there, [file.path for file in files])
            for file, found in zip(files, digests, strict=True):
                if found != (file.bytes, file.sha256):
                    state = "is missing" if found is None else "is not what was written"
                    raise UserError(f"{file.path} {state}: nothing was published; run again")

    def _action(self, table: str, file: DataFile) -> AddAction:
        folder = self.url(table) + "/"
        assert file.path.startswith(folder), f"{file.path} is not in {folder}"
        relative = file.path.removeprefix(folder)
        return AddAction(
            path=relative,
            size=file.bytes,
            partition_values=partition_of(relative),
            modification_time=int(time.time() * 1000),
            data_change=True,
            stats=json.dumps({"numRecords": file.rows}),
        )
