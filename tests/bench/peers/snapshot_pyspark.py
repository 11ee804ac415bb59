"""The windows in PySpark, `local[2]`: all as-of times in one aggregation."""

from pathlib import Path

from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as f

from tests.bench.peers.ingest_pyspark import start
from tests.bench.peers.steps import main
from tests.bench.peers.windows import AS_OFS, CHECKED, LONG_D, SHORT_S, TYPES, events_of


def snapshot(spark: SparkSession, source: Path, out: Path, buckets: int) -> dict[str, int]:
    """The rows, and sums of some columns."""
    spark.conf.set("spark.sql.shuffle.partitions", str(buckets))
    events = spark.read.option("recursiveFileLookup", "true").parquet(str(events_of(source)))
    dates = spark.createDataFrame([(as_of,) for as_of in AS_OFS], "as_of timestamp")
    known = events.join(f.broadcast(dates), f.col("event_time") < f.col("as_of"))
    known = (
        known.withColumn("amount", f.coalesce(f.col("amount").cast("double"), f.lit(0.0)))
        .withColumn("age", f.unix_micros("as_of") - f.unix_micros("event_time"))
        .withColumn("days", f.datediff("as_of", "event_time"))
        .withColumn("night", f.hour(f.col("event_time") + f.expr("INTERVAL 8 HOURS")) < 6)
    )
    made = known.groupBy("user_key", "as_of").agg(*_windows())
    made.write.parquet(str(out / "rows"), compression="zstd")
    checked = spark.read.parquet(str(out / "rows"))
    row = checked.agg(f.count("*").alias("rows"), *(f.sum(c).alias(c) for c in CHECKED)).first()
    assert row is not None
    return {name: round(value) for name, value in row.asDict().items()}


def _windows() -> list[Column]:
    made = [
        f.count("*").alias("n_lifetime"),
        f.max("age").alias("tenure"),
        f.min("age").alias("recency"),
        f.median(f.when(f.col("amount") > 0, f.col("amount"))).alias("amount_median"),
        _distinct("counterparty_key", f.col("age") < 30 * 86_400_000_000, "counterparties_30d"),
    ]
    for name, seconds in SHORT_S.items():
        inside = f.col("age") <= seconds * 1_000_000
        made += _sums(inside, name)
        made += [f.max(f.when(inside, f.col("amount"))).alias(f"max_{name}")]
    for name, length in LONG_D.items():
        inside = f.col("days") <= length
        made += _sums(inside, name)
        made += [f.max(f.when(inside, f.col("amount"))).alias(f"max_{name}")]
        made += [f.avg(f.when(inside, f.col("night").cast("int"))).alias(f"night_{name}")]
        made += [_distinct("category", inside, f"categories_{name}")]
        for kind in TYPES:
            made += _sums(inside & (f.col("event_type") == kind), f"{kind}_{name}")
    for kind in TYPES:
        own = f.when(f.col("event_type") == kind, f.col("age"))
        made += [f.min(own).alias(f"recency_{kind}")]
    return made


def _sums(inside: Column, name: str) -> list[Column]:
    return [
        f.sum(inside.cast("int")).alias(f"n_{name}"),
        f.sum(f.when(inside, f.col("amount")).otherwise(0.0)).alias(f"sum_{name}"),
    ]


def _distinct(column: str, inside: Column, name: str) -> Column:
    """A set to each group, as several COUNT(DISTINCT) would multiply the rows."""
    return f.size(f.collect_set(f.when(inside, f.col(column)))).alias(name)


if __name__ == "__main__":
    main(start, snapshot)
