"""`ingest`: the user's files → tables of the lake, each source and period exactly once."""

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pyarrow import fs

from models.data.buckets import FEWEST
from models.data.keys import secret_check
from models.data.schema import (
    EDGES,
    EVENTS,
    IDENTITIES,
    LABELS,
    REJECTED,
    Table,
    UserError,
    protected_table,
    users_table,
)
from models.data.source import Source
from ray_jobs import tombstones
from ray_jobs.account import Account, Count, Part, from_stored, to_stored
from ray_jobs.commits import BY, changed_by_others, erased_rows
from ray_jobs.doubling import buckets_of, split
from ray_jobs.exchange import STAGING, Block
from ray_jobs.files import SAFE, SourceFile, find
from ray_jobs.lake import Lake
from ray_jobs.outcome import account_of, check, content_of
from ray_jobs.parallel import over
from ray_jobs.rollback import application, roll_back
from ray_jobs.runs import MEANWHILE
from ray_jobs.staging import (
    Earlier,
    IdentitiesUnit,
    Inspected,
    Merged,
    Plan,
    RejectedUnit,
    RowsUnit,
    Staged,
    Unit,
    inspect,
    merge,
    stage,
)
from ray_jobs.storage import DataFile, filesystem

ORDER = ("rejected", "identities", "users", "protected", "edges", "labels", "events")
_USERS_COME_FROM = ("events", "users")
_FORMAT = 3  # of what this job writes: another one means that all files are ingested anew


def ingest(
    lake: Lake,
    sources: Mapping[str, Source],
    *,
    numeric: tuple[str, ...],
    categorical: tuple[str, ...],
    protected: tuple[str, ...],
    buckets: int | None,
    secret: bytes,
    now: datetime,
) -> Account:
    """Read every source into the lake; the account of all rows.

    `numeric`, `categorical` and `protected` are the declared profile columns, `buckets` the
    number of user buckets (a power of two; None: by the number of rows), `secret` what ids are
    keyed with, `now` the latest time that a row may carry. Files that an earlier ingest
    published are left as they are; other files of a source and period replace its earlier rows.
    Ray must be running.

    Raises UserError, with the lake as it was, for a missing file or column, a source without
    rows, too many rejected rows or unreadable files, ids that share a key, and another secret than
    the lake was made with, or fewer buckets. Also, with nothing entered that jobs read, when
    another job has changed the lake meanwhile: run again, it completes.
    """
    started, state = datetime.now(UTC), lake.state()
    files = _find(sources)
    with _staging(lake) as folder:
        plan = Plan(
            lake=lake,
            folder=folder,
            sources=sources,
            tables=_tables(numeric, categorical, protected),
            buckets=FEWEST,
            secret=secret,
            now=now,
            erased=tombstones.erased(lake),
            found=lake.versions(),
        )
        before = _before(plan, state)
        inspected = over(files, partial(inspect, plan), "inspect files")
        contents = _contents(plan, inspected, before)
        plan = replace(plan, buckets=_buckets(plan, buckets, inspected, before))
        changed = [i for i in inspected if content_of(before, i.part) != contents[i.part]]
        staged = _stage(plan, changed)
        check(plan, inspected, staged, [])
        readable = {i.part for i in changed} - _unreadable(changed, staged)
        _undisturbed(plan, state)
        roll_back(lake, plan.tables, readable, plan.by)
        earlier = Earlier(frozenset(readable), _user_sources(plan))
        merged = over(_units(plan, staged), partial(merge, plan, earlier), "merge buckets")
        final = [m for several in merged for m in several]
        check(plan, inspected, staged, final)
        account = account_of(plan, contents, before, staged, final)
        _undisturbed(plan, state)
        _publish(plan, {i.part: i.part in readable for i in changed}, contents, final)
    split(lake, plan.buckets)
    _record(plan, account, contents, before, state, _undisturbed(plan, state), started)
    return account


def _find(sources: Mapping[str, Source]) -> list[SourceFile]:
    for name in sources:
        if not SAFE.fullmatch(name):
            raise UserError(f"sources.{name}: a name of letters, digits, '.', '_' and '-'")
    return [file for name, source in sources.items() for file in find(name, source)]


@contextmanager
def _staging(lake: Lake) -> Iterator[str]:
    """A folder in the lake for this ingest's files; afterwards it is gone, and on a disk so is the
    lake's own folder if nothing came into it."""
    folder = lake.url(f"{STAGING}{uuid.uuid4().hex}")
    try:
        yield folder
    finally:
        (system, inner), (_, root) = filesystem(folder), filesystem(lake.root)
        if system.get_file_info(inner).type == fs.FileType.Directory:
            system.delete_dir(inner)
            local = isinstance(system, fs.LocalFileSystem)  # elsewhere it may be the bucket itself
            if local and not system.get_file_info(fs.FileSelector(root)):
                system.delete_dir(root)


def _tables(
    numeric: tuple[str, ...], categorical: tuple[str, ...], protected: tuple[str, ...]
) -> dict[str, Table]:
    users, shielded = users_table(numeric, categorical), protected_table(protected)
    return {t.name: t for t in (EVENTS, users, EDGES, LABELS, shielded, IDENTITIES, REJECTED)}


def _before(plan: Plan, state: Mapping[str, Any] | None) -> dict[Part, tuple[str, Count]]:
    """What the last ingest or erasure left: each source and period's content hash and counts,
    without the rows of an erasure that was cut off."""
    if state is None:
        return {}
    made = state["config"]
    if made["secret_check"] != secret_check(plan.secret):
        raise UserError(f"the secret is not the one that lake {plan.lake.root} was keyed with")
    gone = erased_rows(plan.lake, state["table_versions"], plan.found)
    stored = from_stored(made["parts"])
    return {part: (content, count.less(gone[part])) for part, (content, count) in stored.items()}


def _buckets(
    plan: Plan,
    wanted: int | None,
    inspected: Sequence[Inspected],
    before: Mapping[Part, tuple[str, Count]],
) -> int:
    """How many buckets these files' rows and those of earlier ingests need."""
    named = {i.part for i in inspected}
    kept = sum(count.accepted for part, (_, count) in before.items() if part not in named)
    return buckets_of(plan.lake, wanted, kept + sum(i.rows for i in inspected))


def _contents(
    plan: Plan, inspected: Sequence[Inspected], before: Mapping[Part, tuple[str, Count]]
) -> dict[Part, str]:
    """A hash of all that determines the rows of a source and period.

    Labels also depend on who is a known user, so on the content of the other sources.
    """
    hashes: dict[Part, list[tuple[str, str, str | None]]] = defaultdict(list)
    for i in inspected:
        hashes[i.part].append((i.file.name, i.sha256, i.unreadable))
    labels = {name for name, source in plan.sources.items() if source.table == "labels"}
    contents = {part: content for part, (content, _) in before.items() if part[0] not in labels}
    for part in sorted(hashes, key=lambda p: (p[0] in labels, p)):
        source = plan.sources[part[0]]
        parts = {
            "format": _FORMAT,
            "source": source.model_dump(
                mode="json", exclude={"path", "max_rejected_fraction", "complete_until"}
            ),
            "columns": str(plan.table_of(part[0]).schema),
            "secret": secret_check(plan.secret),
            "files": sorted(hashes[part]),
            "users": sorted(c for p, c in contents.items() if p[0] not in labels)
            if part[0] in labels
            else None,
        }
        text = json.dumps(parts, sort_keys=True)
        contents[part] = hashlib.sha256(text.encode()).hexdigest()
    return {part: contents[part] for part in sorted(hashes)}


def _stage(plan: Plan, changed: Sequence[Inspected]) -> list[Staged]:
    """Clean the changed files. A file that cannot be read to its end is one rejected row."""
    work = [part for i in changed for part in i.slices]
    batches = [s for several in over(work, partial(stage, plan), "clean rows") for s in several]
    why = {i.file: i.unreadable for i in changed if i.unreadable is not None}
    why |= {s.file: s.unreadable for s in batches if s.unreadable is not None}
    broken = [
        Staged(file=file, rows_in=1, reasons={reason: 1}, unreadable=reason)
        for file, reason in why.items()
    ]
    return [s for s in batches if s.file not in why] + broken


def _unreadable(changed: Sequence[Inspected], staged: Sequence[Staged]) -> set[Part]:
    """The parts of which not one file can be read: their earlier rows stay."""
    broken = {s.file for s in staged if s.unreadable is not None}
    return {i.part for i in changed} - {i.part for i in changed if i.file not in broken}


def _user_sources(plan: Plan) -> frozenset[str]:
    """The sources whose users are known users: those of events and users, now or earlier."""
    named = {n for n, source in plan.sources.items() if source.table in _USERS_COME_FROM}
    there = [t for t in _USERS_COME_FROM if plan.lake.exists(t)]
    return frozenset(named | {f["partition"]["source"] for t in there for f in plan.lake.files(t)})


def _units(plan: Plan, staged: Sequence[Staged]) -> list[Unit]:
    """The work of the second stage: buckets of sources and periods, identities, rejected rows."""
    rows: dict[tuple[str, str, int], list[Block]] = defaultdict(list)
    identities: dict[int, list[Block]] = defaultdict(list)
    users: dict[int, list[Block]] = defaultdict(list)
    rejected: dict[Part, list[str]] = defaultdict(list)
    broken: dict[Part, list[tuple[str, str]]] = defaultdict(list)
    for s in staged:
        part = (s.file.source, s.file.period)
        for bucket, block in s.rows.items():
            rows[*part, bucket].append(block)
        for bucket, block in s.identities.items():
            identities[bucket].append(block)
            if plan.sources[s.file.source].table in _USERS_COME_FROM:
                users[bucket].append(block)
        if s.rejected is not None:
            rejected[part].append(s.rejected.path)
        if s.unreadable is not None:
            broken[part].append((s.file.name, s.unreadable))
    labels = {name for name, source in plan.sources.items() if source.table == "labels"}
    units: list[Unit] = [
        RowsUnit(
            source=source,
            period=period,
            bucket=bucket,
            blocks=tuple(blocks),
            known=tuple(users[bucket]) if source in labels else (),
        )
        for (source, period, bucket), blocks in sorted(rows.items())
    ]
    units += [
        IdentitiesUnit(bucket=bucket, blocks=tuple(blocks))
        for bucket, blocks in sorted(identities.items())
    ]
    units += [
        RejectedUnit(
            source=part[0],
            period=part[1],
            files=tuple(rejected[part]),
            unreadable=tuple(broken[part]),
        )
        for part in sorted({*rejected, *broken})
    ]
    return units


def _publish(
    plan: Plan, parts: Mapping[Part, bool], contents: Mapping[Part, str], final: Sequence[Merged]
) -> None:
    """Publish each source and period, table after table: references first, events last.

    `parts` says whether a part could be read at all; else only its rejected rows are published.
    """
    files: dict[tuple[str, Part], list[DataFile]] = defaultdict(list)
    for m in final:
        files[m.table, m.part].append(m.file)
    for name in ORDER:
        for part, is_readable in sorted(parts.items()):
            own = plan.table_of(part[0]).name
            if name == REJECTED.name or (
                is_readable and name in (own, *([IDENTITIES.name] if own != "labels" else []))
            ):
                _publish_part(plan, plan.tables[name], part, contents[part], files[name, part])


def _publish_part(
    plan: Plan, table: Table, part: Part, content: str, staged: Sequence[DataFile]
) -> None:
    lake, where = plan.lake, {"source": part[0], "period": part[1]}
    files = lake.adopt(staged, plan.folder)
    app = application(table.name, part)
    note = {"content": content, BY: plan.by}
    lake.replace(table, app=app, files=files, where=where, metadata=note)


def _undisturbed(plan: Plan, state: Mapping[str, Any] | None) -> dict[str, int]:
    """The newest versions of the tables. Raises UserError when another job has changed the lake
    since this one began: what it published, or took back, must not come under this one's name."""
    lake = plan.lake
    versions = {name: lake.version(name) for name in ORDER if lake.exists(name)}
    tombstones.check_same(lake, plan.erased, "run it again", "while this ingest ran")
    own = json.dumps(plan.by)
    other = changed_by_others(lake, plan.found, versions, lambda commit: commit.get(BY) == own)
    if other is not None or lake.state() != state:
        raise UserError(MEANWHILE)
    return versions


def _record(
    plan: Plan,
    account: Account,
    contents: Mapping[Part, str],
    before: Mapping[Part, tuple[str, Count]],
    state: Mapping[str, Any] | None,
    versions: Mapping[str, int],
    started: datetime,
) -> None:
    """Enter the run with the versions of its tables, unless this very state is entered."""
    entered = {part: content for part, (content, _) in before.items()}
    hashes = entered | dict(contents)
    left = versions, hashes, plan.buckets
    if state and left == (state["table_versions"], entered, state["config"]["buckets"]):
        return
    parts = {part: count for part, (_, count) in before.items()} | dict(account.parts)
    config: dict[str, Any] = {
        "buckets": plan.buckets,
        "secret_check": secret_check(plan.secret),
        "sources": {name: s.model_dump(mode="json") for name, s in plan.sources.items()},
        "parts": to_stored(Account(parts), hashes),
    }
    counts = account.to_json()
    plan.lake.record_state("ingest", config, counts, versions, after=state, started_at=started)
