"""The same ingest in DuckDB."""

from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from models.data.redact import PATTERNS
from tests.bench import raw
from tests.bench.peers.steps import INNER, OUTER, commit, main


def ingest(db: DuckDBPyConnection, source: Path, out: Path, buckets: int) -> dict[str, int]:
    """Counts of rows accepted and rejected, and duplicates."""
    bits = buckets.bit_length() - 1
    db.execute(f"""
        CREATE OR REPLACE MACRO key_of(id) AS ('0x' || left(sha256(
            {_blob(OUTER)} || unhex(sha256({_blob(INNER)} || encode(id)))), 16))::UBIGINT;
        CREATE OR REPLACE MACRO signed(k) AS CASE
            WHEN k < 9223372036854775808::UBIGINT THEN k::BIGINT
            ELSE (k::HUGEINT - 18446744073709551616)::BIGINT END;
        CREATE OR REPLACE VIEW raw AS SELECT * FROM read_parquet('{source}/*.parquet',
            filename=true, file_row_number=true);
        CREATE OR REPLACE VIEW judged AS SELECT * REPLACE (nullif(trim(user_id), '') AS user_id),
            CASE WHEN nullif(trim(user_id), '') IS NULL THEN 'no user'
                 WHEN NOT isfinite(amount) THEN 'amount'
                 WHEN time > TIMESTAMP '{raw.NOW}' THEN 'time' END AS reason
            FROM raw;
        CREATE OR REPLACE TABLE users AS SELECT user_id, key_of(user_id) AS k FROM
            (SELECT DISTINCT user_id FROM judged WHERE reason IS NULL);
        CREATE OR REPLACE TABLE others AS SELECT counterparty,
            signed(key_of('counterparty:' || counterparty)) AS counterparty_key FROM
            (SELECT DISTINCT counterparty FROM judged);
        CREATE OR REPLACE TABLE texts AS SELECT text, {_redacted()} AS redacted FROM
            (SELECT DISTINCT text FROM judged WHERE text IS NOT NULL);
    """)
    db.execute(f"""COPY (SELECT * FROM judged WHERE reason IS NOT NULL)
        TO '{out}/rejected.parquet' (FORMAT parquet, COMPRESSION zstd)""")
    db.execute(f"""COPY (SELECT signed(k) AS user_key, user_id FROM users ORDER BY 1)
        TO '{out}/identities.parquet' (FORMAT parquet, COMPRESSION zstd)""")
    db.execute(f"""
        CREATE OR REPLACE TABLE clean AS SELECT DISTINCT ON (user_key, event_id)
            signed(k) AS user_key, event_id,
            timezone('{raw.TIMEZONE}', time) AS event_time,
            timezone('{raw.TIMEZONE}', time) AS available_at,
            (date_diff('minute', timezone('{raw.TIMEZONE}', time)::TIMESTAMP, time))::SMALLINT
                AS utc_offset_min,
            trim(type) AS event_type, trim(item) AS item, trim(category) AS category,
            counterparty_key, round(amount, 4)::DECIMAL(18, 4) AS amount, 'CNY' AS currency,
            redacted AS text, (k >> {64 - bits})::INTEGER AS bucket
            FROM judged JOIN users USING (user_id) LEFT JOIN others USING (counterparty)
            LEFT JOIN texts USING (text) WHERE reason IS NULL
    """)
    for bucket in range(buckets):
        folder = out / "events" / f"bucket={bucket}"
        folder.mkdir(parents=True)
        db.execute(f"""COPY (SELECT * EXCLUDE bucket FROM clean WHERE bucket = {bucket}
            ORDER BY user_key, event_time, event_id)
            TO '{folder}/part.parquet' (FORMAT parquet, COMPRESSION zstd)""")
    commit(out / "events")
    total, rejected = db.execute("SELECT count(*), count(reason) FROM judged").fetchone()
    (accepted,) = db.execute("SELECT count(*) FROM clean").fetchone()
    return {"accepted": accepted, "rejected": rejected, "twice": total - rejected - accepted}


def start() -> DuckDBPyConnection:
    """Open a database in memory with two threads."""
    db = duckdb.connect()
    db.execute("SET threads = 2; SET TimeZone = 'UTC'; SET preserve_insertion_order = false")
    return db


def _blob(content: bytes) -> str:
    return "unhex('" + content.hex() + "')"


def _redacted() -> str:
    expression = "trim(text)"
    for token, pattern in PATTERNS:
        plain = pattern.replace("(?-u:\\b)", "\\b").replace("'", "''")
        expression = f"regexp_replace({expression}, '{plain}', '{token}', 'g')"
    suspect = "regexp_matches(text, '@|[0-9]{2}|www|://')"
    return f"CASE WHEN {suspect} THEN {expression} ELSE trim(text) END"


if __name__ == "__main__":
    main(start, ingest)
