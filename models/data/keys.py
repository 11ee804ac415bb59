"""64-bit keys: users and counterparties by HMAC, events by a stable hash of their row.

An XXH3 of a string and the mixing below are defined by their published constants, so a key is the
same on every machine and with every version of the libraries; tests hold known values.
"""

import hmac
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash as plh

from models.data.schema import UserError

COUNTERPARTY = "counterparty:"  # keeps a merchant "17" apart from a user "17"
_NAN = 0x7FF8 << 48
_INTEGER = r"^(?:0|-?[1-9][0-9]{0,17})$"
_U64 = npt.NDArray[np.uint64]


def user_key(secret: bytes, user_id: str) -> int:
    """The first 8 bytes of HMAC-SHA256(secret, id), big-endian, as a signed integer."""
    return int(keys_of(secret, pl.Series([user_id]))[0])


def keys_of(secret: bytes, ids: pl.Series) -> pl.Series:
    """`user_key` of each id of a text column, int64; null stays null. Each id is keyed once.

    `secret`: UTF-8 text.
    """
    return each_of(key_pairs(secret, ids), ids)


def key_pairs(secret: bytes, ids: pl.Series) -> pl.DataFrame:
    """(id, key) of each distinct id."""
    return ids.drop_nulls().unique().to_frame("id").with_columns(key=_hmac64(secret.decode()))


def each_of(pairs: pl.DataFrame, ids: pl.Series) -> pl.Series:
    """The key of each id, from pairs that hold it; null stays null."""
    joined = pl.DataFrame({"id": ids}).join(pairs, on="id", how="left", maintain_order="left")
    return joined["key"].alias(ids.name)


def _hmac64(secret: str) -> pl.Expr:
    digits = plh.col("id").chash.hmac_sha256(key=secret).str.head(16)
    return digits.str.to_integer(base=16, dtype=pl.UInt64).reinterpret(signed=True)


def erased_hashes(secret: bytes, user_keys: pl.Series) -> pl.Series:
    """What a tombstone says of each key: HMAC-SHA256 of it, in hex; null stays null.

    Without the secret neither the key nor the id can be told from it, even by trying them all.
    """
    text = user_keys.cast(pl.String).to_frame("id")
    marked = text.select(pl.lit("erased:") + pl.col("id")).to_series().to_frame("id")
    return marked.select(plh.col("id").chash.hmac_sha256(key=secret.decode())).to_series()


def secret_check(secret: bytes) -> str:
    """A fingerprint of the secret: it tells two secrets apart and gives neither away."""
    return hmac.digest(secret, b"raycredit: is this the same secret?", "sha256")[:8].hex()


def check_identities(identities: pl.DataFrame) -> None:
    """Raise UserError when two ids share a key. Columns used: `user_key`, `user_id`, `source`."""
    pairs = identities.group_by("user_key").agg(
        pl.col("user_id").n_unique().alias("ids"), pl.col("source").unique().sort()
    )
    clashes = pairs.filter(pl.col("ids") > 1).sort("user_key")
    if clashes.height:
        first = clashes.row(0, named=True)
        raise UserError(
            f"sources {', '.join(first['source'])}: {first['ids']} user ids share the key "
            f"{first['user_key']}; ingest with another secret into a new lake"
        )


def id_hash(ids: pl.Series, salt: str) -> pl.Series:
    """int64 of each id: an integer (or the text of one) as it is, any other text hashed.

    `salt` (the source) keeps equal texts of two sources apart.
    """
    if ids.dtype.is_integer():
        return _keep_nulls(_int64(ids), ids)
    text = ids.cast(pl.String)
    integers = text.str.extract(f"({_INTEGER})").cast(pl.Int64)
    hashed = _keep_nulls(_mix(_text_lane(text) ^ _salt(salt)).view(np.int64), text)
    return integers.zip_with(integers.is_not_null(), hashed).alias(ids.name)


def row_hash(rows: pl.DataFrame, salt: str) -> pl.Series:
    """A stable int64 of all columns of each row: two rows share it only when they are equal.

    Columns count by name, not by position; a null counts as an absent column; 6 and 6.0 are
    equal whatever the column's type.
    """
    total = np.full(rows.height, _salt(salt), dtype=np.uint64)
    for name in rows.columns:
        for part, lane, valid in _lanes(rows[name]):
            total += np.where(valid, _mix(lane ^ _salt(f"{name}{part}")), np.uint64(0))
    return pl.Series("event_id", _mix(total).view(np.int64))


def _lanes(column: pl.Series) -> Iterator[tuple[str, _U64, npt.NDArray[np.bool_]]]:
    """A column as 64-bit values with their validity; nanoseconds need a second lane."""
    dtype = column.dtype
    valid = column.is_not_null().to_numpy()
    if isinstance(dtype, pl.Datetime | pl.Duration | pl.Time):
        unit = "ns" if isinstance(dtype, pl.Time) else dtype.time_unit
        units = column.to_physical().fill_null(0).to_numpy().astype(np.int64)
        if unit == "ns":
            units, rest = np.divmod(units, 1000)
            yield "\x00ns", _integer_lane(rest), valid & (rest != 0)
        elif unit == "ms":
            units = units * 1000
        yield "", _integer_lane(units), valid
    elif isinstance(dtype, pl.Date):
        days = column.to_physical().fill_null(0).to_numpy().astype(np.int64)
        yield "", _integer_lane(days * 86_400_000_000), valid
    elif isinstance(dtype, pl.Boolean) or dtype.is_integer():
        yield "", _integer_lane(_int64(column)), valid
    elif dtype.is_float():
        yield "", _float_lane(column.cast(pl.Float64).fill_null(0.0).to_numpy()), valid
    elif dtype.is_nested():
        wrapped = column.to_frame("v").select(pl.struct("v").struct.json_encode()).to_series()
        yield "", _text_lane(wrapped), valid
    else:
        yield "", _text_lane(column.cast(pl.String)), valid


def _int64(column: pl.Series) -> npt.NDArray[np.int64]:
    """Whole numbers as int64; those above its range wrap around, as distinct as before."""
    plain = column.cast(pl.UInt8) if column.dtype == pl.Boolean else column
    return plain.fill_null(0).to_numpy().astype(np.int64)


def _integer_lane(values: npt.NDArray[np.int64]) -> _U64:
    return _mix(values.view(np.uint64))


def _float_lane(values: npt.NDArray[np.float64]) -> _U64:
    bits = np.where(np.isnan(values), np.uint64(_NAN), values.view(np.uint64))
    whole = (np.abs(values) < 2.0**53) & (values == np.floor(values))
    integers = np.where(whole, values, 0.0).astype(np.int64).view(np.uint64)
    return _mix(np.where(whole, integers, bits ^ np.uint64(_NAN >> 3)))


def _text_lane(text: pl.Series) -> _U64:
    filled = text.fill_null("").to_frame("t")
    hashes: _U64 = filled.select(plh.col("t").nchash.xxh3_64()).to_series().to_numpy()
    return hashes


def _salt(text: str) -> np.uint64:
    return np.uint64(_text_lane(pl.Series([text]))[0])


def _keep_nulls(values: npt.NDArray[np.int64], like: pl.Series) -> pl.Series:
    column = pl.Series(like.name, values)
    return column.set(like.is_null(), None) if like.null_count() else column


def _mix(x: _U64) -> _U64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that mixes all bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
