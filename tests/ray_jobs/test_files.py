"""The user's own files: found, and read without merging or losing a row."""

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from models.data.schema import UserError
from models.data.source import Source
from ray_jobs import files
from ray_jobs.files import SourceFile, UnreadableError, batches, find, schema_of, slices

Rows = list[tuple[Any, ...]]


def source(path: Path | str, **more: Any) -> Source:
    return Source(table="users", path=str(path), columns={"user_id": "id"}, immutable=True, **more)


def only(path: Path) -> SourceFile:
    return find("s", source(path))[0]


def read(path: Path, columns: list[str] | None = None) -> tuple[Rows, list[int], Rows]:
    """The rows of a file, their numbers, and the bad ones."""
    rows, numbers, bad = Rows(), list[int](), Rows()
    for part in slices(only(path)):
        for batch in batches(part, columns):
            rows += batch.rows.rows()
            numbers += batch.numbers.to_list()
            bad += batch.bad
    return rows, numbers, bad


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_finding(tmp_path: Path) -> None:
    for name in ("2011/01.csv", "2011/02.csv.gz", "b.parquet", "c.jsonl", "notes.txt", "_SUCCESS",
                 ".hidden.csv", "_tmp/x.csv"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path, name, "x")
    found = find("s", source(tmp_path))
    assert [f.name for f in found] == ["2011/01.csv", "2011/02.csv.gz", "b.parquet", "c.jsonl"]
    assert [f.format for f in found] == ["csv", "csv", "parquet", "jsonl"]
    assert {f.period for f in found} == {"all"}
    assert [f.name for f in find("s", source(tmp_path / "*.parquet"))] == ["b.parquet"]
    assert [f.name for f in find("s", source(tmp_path / "*" / "*.csv"))] == ["2011/01.csv"]
    assert [f.name for f in find("s", source(tmp_path / "**" / "*.csv"))] == ["2011/01.csv"]


def test_periods(tmp_path: Path) -> None:
    written(tmp_path, "lines-2011-01.csv", "id\n1\n")
    written(tmp_path, "lines-2011-02.csv", "id\n1\n")
    found = find("s", source(tmp_path, period=r"(\d{4}-\d\d)\.csv"))
    assert [f.period for f in found] == ["2011-01", "2011-02"]
    for wrong in (r"(\d{5})", r"lines", r"(s-2011-01\.csv|/.*)"):
        with pytest.raises(UserError, match="gives no period in its first group"):
            find("s", source(tmp_path, period=wrong))


def test_nothing_to_find(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none.csv", tmp_path / "empty", tmp_path / "no" / "*.csv"):
        with pytest.raises(UserError, match=r"sources.s.path .*: no files"):
            find("s", source(path))
    with pytest.raises(UserError, match="set format"):
        find("s", source(written(tmp_path, "data.txt", "id\n")))
    assert find("s", source(tmp_path / "data.txt", format="csv"))[0].format == "csv"


def test_csv(tmp_path: Path) -> None:
    text = '\ufeffid,Review Text,n\r\n1,"a, ""b""\r\nc",\r\n\r\n 2 ,5" pipe,007'
    path = written(tmp_path, "a.csv", text)
    assert schema_of(only(path)) == dict.fromkeys(("id", "Review Text", "n"), pl.String())
    assert read(path) == ([("1", 'a, "b"\r\nc', None), (" 2 ", '5" pipe', "007")], [1, 2], [])
    assert read(written(tmp_path, "b.csv.gz", gzip.compress(text.encode())))[1] == [1, 2]
    assert read(written(tmp_path, "c.csv", "id,n\n")) == ([], [], [])


@pytest.mark.parametrize(
    ("text", "rows", "bad"),
    [
        # PyArrow makes one row of the first two: its field ends where the next one's quote begins
        ('a,b,c\n1,"x,9\n2,y",3\n4,z,5\n', [("2", 'y"', "3"), ("4", "z", "5")], [1]),
        ('a,b,c\n1,"x\n2,"y",3\n4,z,5\n', [("2", "y", "3"), ("4", "z", "5")], [1]),
        # and here it loses all rows after the second
        ('a,b,c\n1,x,9\n2,"y,3\n4,z,5\n', [("1", "x", "9"), ("4", "z", "5")], [2]),
        ('a,b,c\n1,"x" y,9\n2,z,3\n', [("2", "z", "3")], [1]),
        ('a,b,c\n1,"x', [], [1]),
    ],
)
def test_broken_quotes_cost_their_own_row(
    tmp_path: Path, text: str, rows: Rows, bad: list[int]
) -> None:
    found, numbers, faults = read(written(tmp_path, "a.csv", text))
    assert found == rows
    assert faults == [(number, "broken quotes") for number in bad]
    assert sorted(numbers + bad) == list(range(1, len(rows) + len(bad) + 1))


def test_short_and_long_rows(tmp_path: Path) -> None:
    rows, numbers, bad = read(written(tmp_path, "a.csv", "a,b\n1\n2,3\n4,5,6\n"))
    assert (rows, numbers) == ([("2", "3")], [2])
    assert bad == [(1, "1 values, the header has 2"), (3, "3 values, the header has 2")]


def test_a_file_of_broken_quotes_is_given_up(tmp_path: Path) -> None:
    lines = "\n".join('1,"x' if n % 2 else '1,"y" z' for n in range(5_000))
    with pytest.raises(UnreadableError, match="broken quotes in more than 1,000 rows"):
        read(written(tmp_path, "a.csv", "a,b\n" + lines))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b'id,"n\n1,2\n', "header has broken quotes"),
        ("a.csv", b"id,n\n\xff\xfe,1\n", "not UTF-8"),
        ("a.csv.gz", gzip.compress(bytes(range(256)) * 999)[:500], "end-of-stream|not UTF-8"),
        ("a.csv.gz", b"id,n\n1,2\n", "gzip"),
        ("a.jsonl", b'{"id": "\xff"}\n', "not UTF-8"),
        ("a.jsonl.gz", b'{"id": 1}\n', "gzip"),
        ("a.jsonl.gz", gzip.compress(bytes(range(256)) * 999)[:500], "end-of-stream|not UTF-8"),
        ("a.parquet", b"", "not a whole Parquet file"),
        ("a.parquet", b"PAR1 and then nothing", "not a whole Parquet file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(UnreadableError, match=reason):
        schema_of(only(path))
        read(path)


def test_gzip_that_breaks_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    text = "id,n\n" + "".join(f"{n},{n * n % 9973}\n" for n in range(20_000))
    path = written(tmp_path, "a.csv.gz", gzip.compress(text.encode())[:-4_000])
    with pytest.raises(UnreadableError, match="end-of-stream"):
        read(path)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two columns are called 'id'"):
        schema_of(only(written(tmp_path, "a.csv", "id,n,id\n")))


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"id": 17, "amount": 2.50, "big": 12345678901234567890123}',
        '{"id": "x", "tags": ["a", 1], "ok": true, "none": null, "empty": ""}',
        "",
        "not json",
        "[1]",
        '{"id": NaN}',
        '{"id": 1',
    ]
    path = written(tmp_path, "a.jsonl", "\n".join(lines))
    assert schema_of(only(path)) is None
    rows, numbers, bad = read(path)
    assert rows[0][:3] == ("17", "2.50", "12345678901234567890123")
    assert rows[1] == ("x", None, None, '["a", "1"]', "true", None, None)
    assert rows[2][0] == "NaN"
    assert numbers == [1, 2, 5]
    assert bad == [(3, "not JSON"), (4, "not a JSON object"), (6, "not JSON")]


def test_json_lines_in_gzip_and_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BATCH_ROWS", 5)
    monkeypatch.setattr(files, "_CHUNK_ROWS", 2)
    lines = [f'{{"id": {n}, "only_{n % 2}": "x"}}' for n in range(11)]
    lines[3] = '{"id": 3'
    path = written(tmp_path, "a.jsonl.gz", gzip.compress("\n".join(lines).encode()))
    rows, numbers, bad = read(path)
    assert [row[0] for row in rows] == [str(n) for n in range(11) if n != 3]
    assert numbers == [n for n in range(1, 12) if n != 4]
    assert bad == [(4, "not JSON")]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UnreadableError, match="end-of-stream"):
        read(path)


def test_bad_lines_come_in_batches_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BATCH_ROWS", 5)
    monkeypatch.setattr(files, "_CHUNK_ROWS", 2)
    path = written(tmp_path, "a.jsonl", "not json\n[1]\n" * 5 + '{"id": 1}\n')
    parts = [batch for part in slices(only(path)) for batch in batches(part, None)]
    assert [len(batch.bad) for batch in parts] == [4, 4, 2]
    assert read(path)[:2] == ([("1",)], [11])


def test_parquet_in_slices_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"id": range(25), "n": range(25)}).write_parquet(path, row_group_size=5)
    monkeypatch.setattr(files, "BATCH_ROWS", 12)
    parts = slices(only(path))
    assert [(p.groups, p.first_row) for p in parts] == [((0, 1), 1), ((2, 3), 11), ((4,), 21)]
    rows, numbers, bad = read(path, ["n"])
    assert (rows, numbers, bad) == ([(n,) for n in range(25)], list(range(1, 26)), [])
    monkeypatch.setattr(files, "BATCH_ROWS", 3)  # smaller than a row group
    assert read(path)[1] == list(range(1, 26))
    pl.DataFrame({"id": []}).write_parquet(path)
    assert read(path) == ([], [], [])


def test_text_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BATCH_ROWS", 5)
    monkeypatch.setattr(files, "_CHUNK_ROWS", 2)
    path = written(tmp_path, "a.csv", "id\n" + "".join(f"{n}\n" for n in range(11)))
    parts = [batch for part in slices(only(path)) for batch in batches(part, None)]
    assert [batch.rows.height for batch in parts] == [4, 4, 3]
    assert read(path)[1] == list(range(1, 12))
