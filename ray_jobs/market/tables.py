"""A simulated block as tables: the files a shop hands over, and the oracle.

Times of events are local (`TIMEZONE`), as a shop's till writes them; all other times are UTC. Both
are without a zone. Ids are strings.
"""

import numpy as np
import polars as pl

from ray_jobs.market.block import AsOf, Block
from ray_jobs.market.events import NOBODY, OFFSET, UTILITIES
from ray_jobs.market.people import (
    ADDRESS,
    AGE_BANDS,
    CHANNELS,
    CITY_TIERS,
    HOUSING,
    REFERRAL,
    SEXES,
    TIE_KINDS,
    Ints,
)
from ray_jobs.market.risk import TASKS
from ray_jobs.market.world import CATEGORIES, KINDS, MODALITIES, OUTCOME_DAYS, WORLD

TIME = pl.Datetime("us")
LABELLED = ("default", "fraud")
SCHEMAS: dict[str, dict[str, pl.DataType]] = {
    "events": {
        "user_id": pl.String(),
        "event_id": pl.String(),
        "time": TIME,
        "type": pl.String(),
        "item": pl.String(),
        "category": pl.String(),
        "counterparty": pl.String(),
        "amount": pl.Float64(),
        "text": pl.String(),
    },
    "users": {
        "user_id": pl.String(),
        "valid_from": TIME,
        "income_declared": pl.Float64(),
        "age_band": pl.String(),
        "channel": pl.String(),
        "city_tier": pl.String(),
        "housing": pl.String(),
    },
    "protected": {"user_id": pl.String(), "sex": pl.String(), "age": pl.Int32()},
    "edges": {
        "user_id": pl.String(),
        "other_id": pl.String(),
        "kind": pl.String(),
        "other_kind": pl.String(),
        "weight": pl.Float64(),
        "valid_from": TIME,
        "valid_to": TIME,
    },
    "labels": {
        "user_id": pl.String(),
        "task": pl.String(),
        "as_of": TIME,
        "value": pl.Float64(),
        "matured_at": TIME,
        "proposed_amount": pl.Float64(),
        "proposed_category": pl.String(),
    },
    "oracle": {
        "user_id": pl.String(),
        "task": pl.String(),
        "as_of": TIME,
        "probability": pl.Float64(),
        "value": pl.Float64(),
        "observed": pl.Boolean(),
        **{f"without_{modality}": pl.Float64() for modality in MODALITIES},
    },
}


def block_tables(block: Block) -> dict[str, pl.DataFrame]:
    """The tables of a block by name, with the columns of `SCHEMAS`, sorted by user and time.

    `events.amount`, CNY, is positive where money leaves the user, and null where none moves.
    `labels` has a row a user and as-of time with an event before it, for default and fraud, less
    the outcomes that a policy hid; `proposed_*` are null where nothing was proposed. `oracle` has
    all of them and spend: the true probability (or mean, CNY), the same without a modality, and
    what came of it.
    """
    frames = {
        "events": _events(block),
        "users": _users(block),
        "protected": _protected(block),
        "edges": _edges(block),
        "labels": _labels(block),
        "oracle": _oracle(block),
    }
    return {
        name: frame.select(pl.col(c).cast(kind) for c, kind in SCHEMAS[name].items())
        for name, frame in frames.items()
    }


def _names(names: tuple[str, ...], codes: Ints) -> pl.Series:
    """Names by code; null where the code is negative."""
    known = pl.Series(codes)
    return pl.Series(names, dtype=pl.String).gather(known.set(known < 0, None))


def _user_id(block: Block, user: Ints) -> pl.Series:
    ids = [f"u{block.people.first + i:09d}" for i in range(block.people.size)]
    return _names(tuple(ids), user)


def _time(time: Ints) -> pl.Series:
    return pl.Series(time).cast(TIME)


def _events(block: Block) -> pl.DataFrame:
    log, e = block.log, WORLD.events
    serial = np.arange(len(log)) - np.searchsorted(log.user, log.user)
    raw = pl.DataFrame(
        {
            "user_id": _user_id(block, log.user),
            "serial": serial,
            "time": _time(log.time + OFFSET),
            "type": _names(KINDS, log.kind),
            "item_number": log.item,
            "category": _names(CATEGORIES, log.category),
            "other": log.counterparty,
            "amount": log.amount,
            "text": pl.Series(log.text.tolist(), dtype=pl.String),
        }
    )
    item, other = pl.col("item_number"), pl.col("other")
    utility, card = other - e.sellers, other - e.sellers - UTILITIES
    counterparty = (
        pl.when(other == NOBODY)
        .then(None)
        .when(utility < 0)
        .then(pl.format("seller-{}", _digits(other, 4)))
        .when(card < 0)
        .then(pl.format("utility-{}", _digits(utility, 2)))
        .otherwise(pl.format("card-{}", _digits(card, 9)))
    )
    return raw.with_columns(
        event_id=pl.format("{}-{}", "user_id", _digits(pl.col("serial"), 6)),
        item=pl.when(item != NOBODY).then(pl.format("{}-{}", "category", _digits(item, 3))),
        counterparty=counterparty,
        amount=pl.col("amount").fill_nan(None),
    )


def _digits(number: pl.Expr, digits: int) -> pl.Expr:
    return number.cast(pl.String).str.zfill(digits)


def _users(block: Block) -> pl.DataFrame:
    """A row for what a user declared when joining, and another where income changed later."""
    people = block.people
    lower = np.array([age for age, _ in AGE_BANDS])
    band = np.searchsorted(lower, people.age, side="right") - 1
    first = pl.DataFrame(
        {
            "user_id": _user_id(block, np.arange(people.size)),
            "valid_from": _time(people.joined),
            "income_declared": people.income_first,
            "age_band": _names(tuple(name for _, name in AGE_BANDS), band),
            "channel": _names(CHANNELS, people.channel),
            "city_tier": _names(CITY_TIERS, people.city_tier),
            "housing": _names(HOUSING, people.housing),
        }
    )
    changed = np.flatnonzero(people.changes)
    later = first[changed].with_columns(
        valid_from=_time(people.income_changed[changed]),
        income_declared=pl.Series(people.income_later[changed]),
    )
    return pl.concat([first, later]).sort("user_id", "valid_from")


def _protected(block: Block) -> pl.DataFrame:
    people = block.people
    return pl.DataFrame(
        {
            "user_id": _user_id(block, np.arange(people.size)),
            "sex": _names(SEXES, people.sex),
            "age": people.age,
        }
    )


def _edges(block: Block) -> pl.DataFrame:
    ties = block.ties
    prefix = np.where(ties.kind == ADDRESS, "address", "device")
    # Nodes are numbered within the block.
    nodes = [
        f"{kind}-{block.number:07d}-{other:04d}"
        for kind, other in zip(prefix.tolist(), ties.other.tolist(), strict=True)
    ]
    referral = ties.kind == REFERRAL
    referrer = _user_id(block, np.where(referral, ties.other, 0))
    frame = pl.DataFrame(
        {
            "user_id": _user_id(block, ties.user),
            "other_id": referrer.zip_with(pl.Series(referral), pl.Series(nodes)),
            "kind": _names(TIE_KINDS, ties.kind),
            "other_kind": _names((*TIE_KINDS[:REFERRAL], "user"), ties.kind),
            "weight": ties.weight,
            "valid_from": _time(ties.since),
            "valid_to": pl.Series([None] * len(ties.user), dtype=TIME),
        }
    )
    return frame.sort("user_id", "kind", "other_id")


def _truth(block: Block, as_of: AsOf, task: str) -> pl.DataFrame:
    """A row of every user for a task as of a time, active or not."""
    truth = as_of.truths[task]
    n = block.people.size
    return pl.DataFrame(
        {
            "user_id": _user_id(block, np.arange(n)),
            "task": [task] * n,
            "as_of": _time(np.full(n, as_of.time)),
            "active": as_of.active,
            "probability": truth.expected,
            "value": truth.value,
            "observed": truth.observed,
            **{f"without_{name}": values for name, values in truth.without.items()},
        }
    )


def _labels(block: Block) -> pl.DataFrame:
    parts = []
    for as_of in block.as_ofs:
        asked = as_of.proposals
        category = _names(CATEGORIES, np.where(asked.made, asked.category, NOBODY))
        for task in LABELLED:
            rows = _truth(block, as_of, task).with_columns(
                matured_at=pl.col("as_of") + pl.duration(days=OUTCOME_DAYS),
                proposed_amount=pl.Series(asked.amount).fill_nan(None),
                proposed_category=category,
            )
            parts.append(rows.filter("active", "observed"))
    return pl.concat(parts).sort("user_id", "as_of", "task")


def _oracle(block: Block) -> pl.DataFrame:
    parts = [_truth(block, as_of, task) for as_of in block.as_ofs for task in TASKS]
    return pl.concat(parts).filter("active").sort("user_id", "as_of", "task")
