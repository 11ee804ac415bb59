"""The same ingest in Daft, on Ray with two cores."""

import hmac
from functools import reduce
from pathlib import Path

import daft
import ray
from daft import DataType, Expression, col, lit
from daft.functions import when

from models.data.redact import PATTERNS
from tests.bench import raw
from tests.bench.peers.steps import COLUMNS, SECRET, commit, main

MINUTES = 8 * 60  # of the shop's zone, which has no summer time


@daft.func.batch(return_dtype=DataType.int64())
def key_of(ids: daft.Series) -> list[int | None]:
    """The key of each id; each distinct id of a batch is keyed once."""
    values = ids.to_pylist()
    known = {
        value: int.from_bytes(hmac.digest(SECRET, value.encode(), "sha256")[:8], "big", signed=True)
        for value in {*values} - {None}
    }
    return [known.get(value) for value in values]


@daft.func.batch(return_dtype=DataType.int32())
def bucket_of(keys: daft.Series, bits: int) -> list[int]:
    """The top bits of each key."""
    return (keys.to_arrow().to_numpy().view("uint64") >> (64 - bits)).astype("int32").tolist()


def ingest(_: None, source: Path, out: Path, buckets: int) -> dict[str, int]:
    """Counts of rows accepted and rejected, and duplicates."""
    user = col("user_id").strip()
    reason = (
        when(user.is_null() | (user == ""), "no user")
        .when(col("amount").is_inf().fill_null(False), "amount")
        .when(col("time") > lit(raw.NOW), "time")
        .otherwise(lit(None))
    )
    judged = daft.read_parquet(f"{source}/*.parquet").with_columns(
        {"user_id": user, "reason": reason}
    )
    rejected = judged.where(col("reason").not_null())
    rejected.write_parquet(str(out / "rejected"), compression="zstd")
    good = judged.where(col("reason").is_null())
    users = good.select("user_id").distinct().with_column("user_key", key_of(col("user_id")))
    users.write_parquet(str(out / "identities"), compression="zstd")
    at = col("time").replace_time_zone(raw.TIMEZONE).convert_time_zone("UTC")
    clean = good.with_columns(
        {
            "user_key": key_of(col("user_id")),
            "event_time": at,
            "available_at": at,
            "utc_offset_min": lit(MINUTES).cast(DataType.int16()),
            "event_type": col("type").strip(),
            "item": col("item").strip(),
            "category": col("category").strip(),
            "counterparty_key": key_of(lit("counterparty:") + col("counterparty")),
            "amount": col("amount").cast(DataType.decimal128(18, 4)),
            "currency": lit("CNY"),
            "text": _redacted(col("text").strip()),
        }
    ).with_column("bucket", bucket_of(col("user_key"), buckets.bit_length() - 1))
    (
        clean.select(*COLUMNS, "bucket")
        .drop_duplicates("user_key", "event_id")
        .sort(["bucket", "user_key", "event_time", "event_id"])
        .write_parquet(str(out / "events"), compression="zstd", partition_cols=["bucket"])
    )
    commit(out / "events")
    total, bad = judged.count_rows(), rejected.count_rows()
    accepted = daft.read_parquet(f"{out}/events/**/*.parquet").count_rows()
    return {"accepted": accepted, "rejected": bad, "twice": total - bad - accepted}


def start() -> None:
    """Start Ray on two cores and let Daft run on it."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    daft.set_runner_ray()


def _redacted(text: Expression) -> Expression:
    def one(column: Expression, step: tuple[str, str]) -> Expression:
        token, pattern = step
        return column.regexp_replace(pattern, token)

    return when(text.regexp("@|[0-9]{2}|www|://"), reduce(one, PATTERNS, text)).otherwise(text)


if __name__ == "__main__":
    main(start, ingest)
