"""What a task hands on is what the next one reads, block by block, or an error."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ray_jobs.exchange import read_blocks, write_blocks

ROWS = pl.DataFrame(
    {"k": [1, 2, 3, 4], "text": ["a", None, "c" * 99, "d"], "bucket": [2, 0, 2, 0]},
    schema_overrides={"bucket": pl.Int32},
)


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 5))
def test_a_bucket_is_put_together_from_the_blocks_of_all_files(
    tmp_path_factory: pytest.TempPathFactory, buckets: list[int], files: int
) -> None:
    folder = tmp_path_factory.mktemp("exchange")
    frame = pl.DataFrame({"bucket": buckets}, schema={"bucket": pl.Int32}).with_row_index("k")
    parts = [frame[at::files] for at in range(files)]
    staged = [write_blocks(part, str(folder / f"{at}")) for at, part in enumerate(parts)]
    assert {b for one in staged for b in one} == set(buckets)
    for bucket in set(buckets):
        rows = read_blocks([one[bucket] for one in staged if bucket in one])
        expected = pl.concat(part.filter(pl.col("bucket") == bucket) for part in parts)
        assert_frame_equal(rows, expected.drop("bucket"))


def test_some_columns_of_a_block(tmp_path: Path) -> None:
    blocks = write_blocks(ROWS, str(tmp_path / "new" / "t"))
    assert_frame_equal(read_blocks([blocks[2]], ["k"]), pl.DataFrame({"k": [1, 3]}))
    assert [str(p) for p in (tmp_path / "new").iterdir()] == [blocks[2].path]


def test_a_task_run_again_leaves_the_blocks_of_its_first_attempt(tmp_path: Path) -> None:
    first = write_blocks(ROWS, str(tmp_path / "t"))
    again = write_blocks(ROWS.reverse(), str(tmp_path / "t"))
    assert read_blocks([first[2]])["k"].to_list() == [1, 3]
    assert read_blocks([again[2]])["k"].to_list() == [3, 1]
    assert write_blocks(ROWS, str(tmp_path / "t")) == first


def test_no_rows_are_no_file(tmp_path: Path) -> None:
    assert write_blocks(ROWS.clear(), str(tmp_path / "t")) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_byte_raises(tmp_path: Path) -> None:
    blocks = write_blocks(ROWS, str(tmp_path / "t"))
    path = Path(blocks[0].path)
    content = path.read_bytes()
    for block in blocks.values():
        for at in range(block.offset, block.offset + block.length):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(OSError, match=r"/t-\w+: the bytes at"):
                read_blocks([block])
