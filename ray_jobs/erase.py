"""`erase`: users are removed from every table of the lake and from what was made of it.

What holds a user: the tables with a `user_key`, ties in both directions (`dst`), and files under
the work folder with a `user_key` (snapshots, predictions). A row of `rejected` cannot be told to
be about a user: its ids and texts were masked before it was written. The hash in `tombstones`
keeps later ingests from bringing an erased user back.
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from deltalake import DeltaTable

from models.data.buckets import MOST, bucket_of
from models.data.keys import erased_hashes, key_pairs, secret_check
from models.data.schema import IDENTITIES, UserError
from models.data.values import parse_id
from ray_jobs import tombstones
from ray_jobs.account import Account, Part, from_stored, to_stored
from ray_jobs.commits import ERASED_PARTS, ERASURE, changed_by_others, erased_rows
from ray_jobs.lake import Lake
from ray_jobs.parallel import over
from ray_jobs.progress import say
from ray_jobs.runs import MEANWHILE
from ray_jobs.storage import DataFile, put, read_file, short_digest

FILES_A_TASK = 16
WORK = "work"  # what the account calls rows of snapshots and predictions


@dataclass(frozen=True)
class Users:
    """Whom to erase. `keys` and `hashes` are in one order."""

    keys: tuple[int, ...]
    hashes: tuple[str, ...]
    ids: tuple[str, ...] = field(repr=False)

    def count(self, named: Sequence[pl.Series]) -> tuple[pl.Series, dict[str, int]]:
        """Which rows name one of them in any of the columns, and how many rows name each."""
        wanted = pl.Series(self.keys, dtype=pl.Int64).implode()
        hits = [column.is_in(wanted) for column in named]
        found = [column.filter(hit) for column, hit in zip(named, hits, strict=True)]
        counts = Counter(key for keys in found for key in keys.to_list())
        hit = pl.select(pl.any_horizontal(hits)).to_series().fill_null(False)
        pairs = zip(self.keys, self.hashes, strict=True)
        return hit, {user: counts[key] for key, user in pairs if counts[key]}


@dataclass(frozen=True)
class Rewritten:
    """A data file that held one of the users, and what is to take its place."""

    table: str
    path: str
    file: DataFile | None  # None: nobody else was in it
    rows: int  # removed
    users: Mapping[str, int]  # hash → rows
    part: Part | None


def ids_of(user_ids: Sequence[str], file: str | None) -> list[str]:
    """The ids given one by one and in a file, one a line, each once. Raises UserError."""
    lines: list[str] = []
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--user-ids {file}: a text file of one id a line") from error
    given = parse_id(pl.Series("user_id", [*user_ids, *lines], dtype=pl.String)).values
    ids = given.drop_nulls().unique(maintain_order=True).to_list()
    if not ids:
        raise UserError("whom? give --user-id ID or --user-ids FILE")
    return ids


def erase(lake: Lake, work: Path, user_ids: Sequence[str], secret: bytes) -> dict[str, int]:
    """Remove users from the lake and the work folder; the rows removed by table. Ray must run.

    Each table is committed once, and only the files that hold one of the users are rewritten; a
    run that was cut off is finished by the next. The row of `runs` names the tables without the
    users, which jobs read from then on. Nothing changes where they have been erased before.

    Raises UserError, and changes nothing, when none of the ids is known to the lake, for another
    secret than the lake's, and when an ingest was cut off while it published. Also when another
    job changes the lake while this one commits: run again after that job, it finishes.
    """
    started = datetime.now(UTC)
    state = lake.state()
    if state is None:
        raise UserError(f"nothing in lake {lake.root} yet: run `raycredit ingest` first")
    if state["config"]["secret_check"] != secret_check(secret):
        raise UserError(f"the secret is not the one that lake {lake.root} was keyed with")
    _check_finished(lake, state)
    pairs = key_pairs(secret, pl.Series(user_ids, dtype=pl.String)).sort("key")
    hashes = erased_hashes(secret, pairs["key"])
    users = Users(tuple(pairs["key"]), tuple(hashes), tuple(pairs["id"]))
    found = over(_units(lake, users), partial(_search, lake, users), "erase")
    rewritten = [one for several in found for one in several]
    done = {name: _noted(lake, name) for name in _tables_of_users(lake)}
    buried = tombstones.erased(lake)
    known = {u for r in rewritten for u in r.users} | {u for n in done.values() for u in n} | buried
    unknown = [i for i, user in zip(users.ids, users.hashes, strict=True) if user not in known]
    if len(unknown) == len(users.ids):
        more = f" (and {len(unknown) - 1:,} more)" if len(unknown) > 1 else ""
        raise UserError(f"lake {lake.root} knows no user {unknown[0]!r}{more}: nothing was erased")
    _check_finished(lake, state)
    removed = {WORK: _clean_work(lake, work, users)}
    for table in sorted({r.table for r in rewritten}, key=lambda t: (t == IDENTITIES.name, t)):
        mine = [r for r in rewritten if r.table == table]
        _commit(lake, table, mine)
        removed[table] = sum(r.rows for r in mine)
    versions = _check_finished(lake, state)
    new = _bury(lake, users, known - buried)
    entered = _record(lake, state, versions, removed, new, started)
    _say(removed, new, len(unknown), nothing=not (entered or removed[WORK]))
    return removed


def _check_finished(lake: Lake, state: Mapping[str, Any]) -> dict[str, int]:
    """The newest versions of the tables that jobs read: since their state, only erasures,
    compactions and splits may have come.

    What a killed ingest left behind, or one that runs, would else be published by this job's row
    of `runs`.
    """
    before: dict[str, int] = state["table_versions"]
    versions = {table: lake.version(table) for table in before}
    if lake.state() != state:
        raise UserError(MEANWHILE)
    table = changed_by_others(lake, before, versions, lambda commit: ERASURE in commit)
    if table is not None:
        raise UserError(
            f"table {table}: an ingest was cut off, or still runs; run `raycredit ingest` first"
        )
    return versions


def _tables_of_users(lake: Lake) -> list[str]:
    return [name for name in lake.versions() if "user_key" in lake.table(name).schema.names]


def _units(lake: Lake, users: Users) -> list[tuple[str, list[dict[str, Any]]]]:
    """The files in which the users may be: of their buckets, and all of ties, whose other ends
    lie in any bucket."""
    keys = pl.DataFrame({"k": users.keys}, schema={"k": pl.Int64})
    counts = [1 << k for k in range(MOST.bit_length())]  # a file may be of any fineness
    buckets = {b for n in counts for b in keys.select(bucket_of(pl.col("k"), n)).to_series()}
    theirs = {None, *buckets}
    units = []
    for table in _tables_of_users(lake):
        everywhere = "dst" in lake.table(table).schema.names
        files = [
            f for f in lake.files(table) if everywhere or f["partition"].get("bucket") in theirs
        ]
        units += [
            (table, files[at : at + FILES_A_TASK]) for at in range(0, len(files), FILES_A_TASK)
        ]
    return units


def _search(
    lake: Lake, users: Users, unit: tuple[str, Sequence[Mapping[str, Any]]]
) -> list[Rewritten]:
    """Rewrite the files of a table that hold one of the users; not yet published."""
    name, files = unit
    table = lake.table(name)
    columns = [c for c in ("user_key", "dst") if c in table.schema.names]
    found = []
    for file in files:
        hit, counts = users.count(read_file(file["path"], columns=columns).get_columns())
        if not hit.any():
            continue
        kept = lake.rows(table, file).filter(~hit)
        partition = file["partition"]
        part = (partition["source"], partition["period"]) if "source" in partition else None
        new = lake.write_part(table, kept, partition) if kept.height else None
        rows = file["num_records"] - kept.height
        found.append(Rewritten(name, file["path"], new, rows, counts, part))
    return found


def _commit(lake: Lake, table: str, rewritten: Sequence[Rewritten]) -> None:
    counts: Counter[str] = Counter()
    parts: Counter[Part] = Counter()
    for one in rewritten:
        counts.update(one.users)
        if one.part is not None:
            parts[one.part] += one.rows
    done = lake.rewrite(
        table,
        app=f"erase/{table}",
        gone=[one.path for one in rewritten],
        files=[one.file for one in rewritten if one.file is not None],
        metadata={
            ERASURE: dict(counts),
            ERASED_PARTS: [[*part, rows] for part, rows in parts.items()],
        },
    )
    if not done:
        raise UserError(f"table {table}: another job changed it at this moment; run again")


def _noted(lake: Lake, table: str) -> dict[str, int]:
    """The rows that commits of a table removed of each erased user, by hash."""
    counts: Counter[str] = Counter()
    for commit in DeltaTable(lake.url(table)).history():
        counts.update(json.loads(commit.get(ERASURE, "{}")))
    return dict(counts)


def _bury(lake: Lake, users: Users, known: Iterable[str]) -> int:
    """A tombstone for each known user who has none; how many."""
    new = sorted(set(known) & set(users.hashes))
    if not new:
        return 0
    by_table = {name: _noted(lake, name) for name in _tables_of_users(lake)}
    rows = [
        {
            "user_hash": user,
            "erased_at": datetime.now(UTC),
            "rows": json.dumps({t: n[user] for t, n in by_table.items() if user in n}),
        }
        for user in new
    ]
    frame = pl.DataFrame(rows, schema=pl.Schema(tombstones.TOMBSTONES.schema))
    tombstones.bury(lake, frame, f"erase/{short_digest(new)}")
    return len(new)


def _record(
    lake: Lake,
    state: Mapping[str, Any],
    versions: Mapping[str, int],
    removed: Mapping[str, int],
    users: int,
    started: datetime,
) -> bool:
    """Enter the run with the tables at `versions`; False where nothing was erased since `state`.

    The account of each source and period moves the removed rows from accepted to rejected, as an
    ingest of the same file would count them now.
    """
    gone = erased_rows(lake, state["table_versions"], versions)
    if not (gone or users or any(removed.values())):
        return False
    stored = from_stored(state["config"]["parts"])
    counts = {part: count.less(gone[part]) for part, (_, count) in stored.items()}
    config = {
        **state["config"],
        "parts": to_stored(
            Account(counts), {part: content for part, (content, _) in stored.items()}
        ),
    }
    account = {"users": users, **removed}
    lake.record_state("erase", config, account, versions, after=state, started_at=started)
    return True


def _clean_work(lake: Lake, work: Path, users: Users) -> int:
    """Remove the users from files under the work folder that have a `user_key`; the rows."""
    if not work.is_dir():
        return 0
    inside = Path(lake.root).resolve()  # as `work` below: a link in either path hides none
    files = [str(p) for p in sorted(work.resolve().rglob("*.parquet")) if inside not in p.parents]
    units = [files[at : at + FILES_A_TASK] for at in range(0, len(files), FILES_A_TASK)]
    counts = over(units, partial(_clean_files, users), "erase from work")
    _recount_snapshots(work)
    return sum(counts)


def _clean_files(users: Users, paths: Sequence[str]) -> int:
    rows = 0
    for path in map(Path, paths):
        if "user_key" not in pq.read_schema(path).names:
            continue
        hit, _ = users.count([pl.read_parquet(path, columns=["user_key"])["user_key"]])
        if not hit.any():
            continue
        rows += int(hit.sum())
        kept = pl.read_parquet(path).filter(~hit)
        if kept.is_empty():
            path.unlink()
            continue
        new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        kept.write_parquet(new)
        os.replace(new, path)
    return rows


def _recount_snapshots(work: Path) -> None:
    """Make the manifests of snapshots count the rows that their files hold."""
    for path in work.glob("snapshots/*/snapshot.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            role: sum(pq.read_metadata(f).num_rows for f in (path.parent / role).glob("*.parquet"))
            for role in manifest["rows"]
        }
        if rows == manifest["rows"]:
            continue
        account = manifest["account"] | rows
        account["rows"] = sum(rows.values()) + account["without_events"]
        put(
            json.dumps({**manifest, "rows": rows, "account": account}, indent=1).encode(), str(path)
        )


def _say(removed: Mapping[str, int], users: int, unknown: int, *, nothing: bool) -> None:
    if nothing:
        say("erase: nothing found; these users were erased before")
    else:
        rows = ", ".join(f"{table} {n:,}" for table, n in sorted(removed.items()) if n) or "none"
        say(f"erase: {users:,} users; rows removed: {rows}")
        say(
            "erase: older versions of the tables hold them until `raycredit compact --vacuum-days "
            "0`; running endpoints keep graph rows in memory until they restart; raw files are "
            "yours to clean"
        )
    if unknown:
        say(f"erase: {unknown:,} ids are unknown to the lake")
