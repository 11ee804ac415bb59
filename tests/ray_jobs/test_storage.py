"""Parquet files are written whole, the same bytes each time, and read with every page verified."""

import os
import re
import time
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from models.data.schema import Table, UserError
from ray_jobs import storage
from ray_jobs.storage import (
    digest_of,
    filesystem,
    in_one_step,
    move,
    partition_of,
    read_file,
    write_file,
)

TABLE = Table(
    name="t",
    schema=pa.schema([("k", pa.int64()), ("text", pa.string()), ("bucket", pa.int32())]),
    key=("k",),
    sort=("k",),
    required=(),
)
ROWS = pl.DataFrame(
    {"k": [1, 2, 3, 4], "text": ["a", None, "c" * 99, "d"], "bucket": [2, 0, 2, 0]},
    schema_overrides={"bucket": pl.Int32},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = write_file(ROWS, TABLE, str(tmp_path / "new" / "t.parquet"))
    assert_frame_equal(read_file(file.path), ROWS)
    assert digest_of(file.path) == (file.bytes, file.sha256)
    assert file.rows == 4
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["t.parquet"]
    again = write_file(ROWS, TABLE, str(tmp_path / "again.parquet"))
    assert again.sha256 == file.sha256


def test_columns_that_the_folders_give_are_not_in_the_file(tmp_path: Path) -> None:
    file = write_file(ROWS, TABLE, str(tmp_path / "x=1" / "t" / "bucket=2" / "p.parquet"))
    assert read_file(file.path).columns == ["k", "text"]
    assert read_file(file.path, columns=["text", "bucket"]).columns == ["text"]


def test_partition_of() -> None:
    assert partition_of("/a=0/t/source=s/bucket=3/p.parquet") == {"source": "s", "bucket": "3"}
    assert partition_of("/t/p=1.parquet") == {}


def test_a_flipped_byte_raises(tmp_path: Path) -> None:
    """Every byte of the pages; the footer is covered by the SHA-256 in the commit."""
    path = tmp_path / "t.parquet"
    write_file(ROWS, TABLE, str(path))
    content = path.read_bytes()
    meta = pq.read_metadata(path).row_group(0)
    pages = [meta.column(i) for i in range(meta.num_columns)]
    first = min(c.dictionary_page_offset or c.data_page_offset for c in pages)
    last = first + sum(c.total_compressed_size for c in pages)
    silent = 0
    for at in range(first, last):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            silent += not read_file(str(path)).equals(ROWS)
        except OSError as error:
            assert str(path) in str(error)
    assert silent == 0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(50) + b"PAR1"])
def test_what_is_no_parquet_file_raises(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"t\.parquet"):
        read_file(str(path))
    with pytest.raises(OSError, match=r"none\.parquet"):
        read_file(str(tmp_path / "none.parquet"))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_file(ROWS, TABLE, str(tmp_path / "t.parquet"))
    assert list(tmp_path.iterdir()) == []


def test_move_and_file_systems(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    move(str(tmp_path / "a"), str(tmp_path / "new" / "b"))
    assert (tmp_path / "new" / "b").read_text() == "x"
    system, path = filesystem(f"file://{tmp_path}/new/b")
    assert path == f"{tmp_path}/new/b"
    assert system.get_file_info(path).size == 1
    assert filesystem("s3://bucket/key?region=eu-west-1")[1] == "bucket/key"


def test_of_two_jobs_that_make_a_folder_the_first_stays_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "made"
    with in_one_step(folder) as ours:
        (ours / "a").write_text("ours")
        with in_one_step(folder) as theirs:
            (theirs / "a").write_text("theirs")
            (theirs / "b").write_text("theirs")
        (ours / "b").write_text("ours")
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"a": "theirs", "b": "theirs"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_failed_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), in_one_step(tmp_path / "made") as staged:
        (staged / "a").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_job_left_goes_after_a_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".made.old", tmp_path / ".made.new"
    for left in (old, new):
        (left / "fit").mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    for folder in (old / "fit", old, new):
        os.utime(folder, (two_days_ago, two_days_ago))
    with in_one_step(tmp_path / "made"):
        pass
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("url", ["az://c/lake", "s3://bucket?regoin=x", "s3://buc ket/x"])
def test_a_url_of_no_known_store_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match=f"{re.escape(url[:12])}.*: expected a path, or an s3://"):
        filesystem(url)
