"""The same ingest in PySpark, `local[2]`."""

from functools import reduce
from pathlib import Path

from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as f

from models.data.redact import PATTERNS
from tests.bench import raw
from tests.bench.peers.steps import COLUMNS, INNER, OUTER, commit, main


def ingest(spark: SparkSession, source: Path, out: Path, buckets: int) -> dict[str, int]:
    """Counts of rows accepted and rejected, and duplicates."""
    bits = buckets.bit_length() - 1
    user = f.when(f.trim("user_id") != "", f.trim("user_id"))
    judged = (
        spark.read.parquet(str(source))
        .withColumn("user_id", user)
        .withColumn(
            "reason",
            f.when(f.col("user_id").isNull(), "no user")
            .when(f.abs("amount") == float("inf"), "amount")
            .when(f.col("time") > f.lit(raw.NOW), "time"),
        )
    )
    judged.filter(f.col("reason").isNotNull()).write.parquet(
        str(out / "rejected"), compression="zstd"
    )
    good = judged.filter(f.col("reason").isNull())
    users = good.select("user_id").distinct().withColumn("user_key", _key(f.col("user_id")))
    users.write.parquet(str(out / "identities"), compression="zstd")
    at = f.to_utc_timestamp("time", raw.TIMEZONE)
    # the user's key of each row rather than of each user: a join would shuffle all rows once more
    clean = (
        good.withColumn("user_key", _key(f.col("user_id")))
        .withColumn("event_time", at)
        .withColumn("available_at", at)
        .withColumn(
            "utc_offset_min",
            ((f.unix_timestamp("time") - f.unix_timestamp(at)) / 60).cast("smallint"),
        )
        .withColumn("event_type", f.trim("type"))
        .withColumn("item", f.trim("item"))
        .withColumn("category", f.trim("category"))
        .withColumn("counterparty_key", _key(f.concat(f.lit("counterparty:"), "counterparty")))
        .withColumn("amount", f.col("amount").cast("decimal(18,4)"))
        .withColumn("currency", f.lit("CNY"))
        .withColumn("text", _redacted(f.trim("text")))
        .withColumn("bucket", f.shiftrightunsigned("user_key", 64 - bits).cast("int"))
    )
    (
        clean.select(*COLUMNS, "bucket")
        .repartition(buckets, "bucket")
        .dropDuplicates(["bucket", "user_key", "event_id"])  # no second shuffle: bucket is enough
        .sortWithinPartitions("bucket", "user_key", "event_time", "event_id")
        .write.partitionBy("bucket")
        .parquet(str(out / "events"), compression="zstd")
    )
    commit(out / "events")
    counts = judged.agg(f.count("*"), f.count("reason")).first()
    accepted = spark.read.parquet(str(out / "events")).count()
    return {
        "accepted": accepted,
        "rejected": counts[1],
        "twice": counts[0] - counts[1] - accepted,
    }


def start() -> SparkSession:
    """Start Spark on two cores, without its page and its chatter."""
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.driver.memory", "8g")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "16")
        .config("spark.sql.adaptive.coalescePartitions.enabled", "false")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )
    spark.range(1000).repartition(2, "id").sortWithinPartitions("id").count()
    return spark


def _key(text: Column) -> Column:
    inner = f.unhex(f.sha2(f.concat(f.lit(bytearray(INNER)), f.encode(text, "utf-8")), 256))
    digest = f.sha2(f.concat(f.lit(bytearray(OUTER)), inner), 256)
    return f.conv(f.substring(digest, 1, 16), 16, -10).cast("bigint")


def _redacted(text: Column) -> Column:
    def one(column: Column, step: tuple[str, str]) -> Column:
        token, pattern = step
        return f.regexp_replace(column, pattern.replace("(?-u:\\b)", "\\b"), token)

    return f.when(text.rlike("@|[0-9]{2}|www|://"), reduce(one, PATTERNS, text)).otherwise(text)


if __name__ == "__main__":
    main(start, ingest)
