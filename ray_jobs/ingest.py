"""`ingest`: the user's files → tables of the lake, each source and period exactly once."""

import hashlib
import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pyarrow import fs

from models.data.clean import ERASED
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
from ray_jobs.exchange import STAGING, Block
from ray_jobs.files import SAFE, SourceFile, find
from ray_jobs.lake import Lake
from ray_jobs.parallel import over
from ray_jobs.rollback import application, roll_back
from ray_jobs.staging import (
    UNKNOWN_USER,
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
_FORMAT = 1  # of what this job writes: another one means that all files are ingested anew


def ingest(
    lake: Lake,
    sources: Mapping[str, Source],
    *,
    numeric: tuple[str, ...],
    categorical: tuple[str, ...],
    protected: tuple[str, ...],
    buckets: int,
    secret: bytes,
    now: datetime,
) -> Account:
    """Read every source into the lake; the account of all rows.

    `numeric`, `categorical` and `protected` are the declared profile columns, `buckets` the
    number of user buckets (a power of two), `secret` what ids are keyed with, `now` the latest
    time that a row may carry. Files that an earlier ingest published are left as they are; other
    files of a source and period replace its earlier rows. Ray must be running.

    Raises UserError, with the lake as it was, for a missing file or column, a source without
    rows, too many rejected rows or unreadable files, ids that share a key, and another secret or
    number of buckets than the lake was made with.
    """
    started = datetime.now(UTC)
    files = _find(sources)
    with _staging(lake) as folder:
        plan = Plan(
            lake=lake,
            folder=folder,
            sources=sources,
            tables=_tables(numeric, categorical, protected),
            buckets=buckets,
            secret=secret,
            now=now,
            erased=tombstones.erased(lake),
        )
        before = _before(plan)
        inspected = over(files, partial(inspect, plan), "inspect files")
        contents = _contents(plan, inspected, before)
        changed = [i for i in inspected if _content(before, i.part) != contents[i.part]]
        staged = _stage(plan, changed)
        _check(plan, inspected, staged, [])
        readable = {i.part for i in changed} - _unreadable(changed, staged)
        roll_back(lake, plan.tables, readable)
        earlier = Earlier(frozenset(readable), _user_sources(plan))
        merged = over(_units(plan, staged), partial(merge, plan, earlier), "merge buckets")
        final = [m for several in merged for m in several]
        _check(plan, inspected, staged, final)
        account = _account(plan, contents, before, staged, final)
        if tombstones.erased(lake) != plan.erased:
            raise UserError("users were erased while this ingest ran: run it again")
        _publish(plan, {i.part: i.part in readable for i in changed}, contents, final)
    _record(plan, account, contents, before, started)
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
        system, root = filesystem(lake.root)
        if system.get_file_info(filesystem(folder)[1]).type == fs.FileType.Directory:
            system.delete_dir(filesystem(folder)[1])
            local = isinstance(system, fs.LocalFileSystem)  # elsewhere it may be the bucket itself
            if local and not system.get_file_info(fs.FileSelector(root)):
                system.delete_dir(root)


def _tables(
    numeric: tuple[str, ...], categorical: tuple[str, ...], protected: tuple[str, ...]
) -> dict[str, Table]:
    users, shielded = users_table(numeric, categorical), protected_table(protected)
    return {t.name: t for t in (EVENTS, users, EDGES, LABELS, shielded, IDENTITIES, REJECTED)}


def _before(plan: Plan) -> dict[Part, tuple[str, Count]]:
    """What the last ingest or erasure left: each source and period's content hash and counts."""
    row = plan.lake.state()
    if row is None:
        return {}
    made = row["config"]
    if made["buckets"] != plan.buckets:
        raise UserError(
            f"buckets: lake {plan.lake.root} was made with {made['buckets']}, not {plan.buckets}"
        )
    if made["secret_check"] != secret_check(plan.secret):
        raise UserError(f"the secret is not the one that lake {plan.lake.root} was keyed with")
    return from_stored(made["parts"])


def _content(before: Mapping[Part, tuple[str, Count]], part: Part) -> str | None:
    return before[part][0] if part in before else None


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
            "buckets": plan.buckets,
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


def _check(
    plan: Plan, inspected: Sequence[Inspected], staged: Sequence[Staged], final: Sequence[Merged]
) -> None:
    """Raise UserError for a source with too many unreadable files or rejected rows.

    Rows of erased users are no fault of the file.
    """
    for name, source in plan.sources.items():
        files = [i.file for i in inspected if i.file.source == name]
        mine = [s for s in staged if s.file.source == name]
        broken = [s for s in mine if s.unreadable is not None]
        most = source.max_rejected_fraction
        if broken and (len(files) == 1 or len(broken) > most * len(files)):
            raise UserError(f"{broken[0].file.path}: {broken[0].unreadable}")
        read = [s for s in mine if s.unreadable is None]
        unknown = [m for m in final if m.part[0] == name and m.first is not None]
        rows_in = sum(s.rows_in for s in read)
        faults = [n for s in read for reason, n in s.reasons.items() if reason != ERASED]
        rejected = sum(faults) + sum(m.unknown for m in unknown)
        if rejected > most * rows_in:
            first = [(s.file.name, *s.first) for s in read if s.first is not None]
            first += [(*m.first, UNKNOWN_USER) for m in unknown if m.first is not None]
            file, row, reason = min(first)
            raise UserError(
                f"sources.{name}: {rejected:,} of {rows_in:,} rows rejected, more than "
                f"max_rejected_fraction {most:g}; the first: {file}, row {row}: {reason}"
            )


def _account(
    plan: Plan,
    contents: Mapping[Part, str],
    before: Mapping[Part, tuple[str, Count]],
    staged: Sequence[Staged],
    final: Sequence[Merged],
) -> Account:
    """What became of every row, by source and period. Raises UserError for a source of no rows.

    Rows in are counted as they are read, accepted and rejected ones in the files written.
    """
    read: dict[Part, list[Staged]] = defaultdict(list)
    wrote: dict[Part, list[Merged]] = defaultdict(list)
    for s in staged:
        read[s.file.source, s.file.period].append(s)
    for m in final:
        wrote[m.part].append(m)
    counts = {}
    for part, content in contents.items():
        if _content(before, part) == content:
            counts[part] = before[part][1]
            continue
        mine, made, own = read[part], wrote[part], plan.table_of(part[0]).name
        reasons = sum((Counter(s.reasons) for s in mine), Counter[str]())
        reasons[UNKNOWN_USER] += sum(m.unknown for m in made)
        counts[part] = Count(
            rows_in=sum(s.rows_in for s in mine),
            accepted=sum(m.file.rows for m in made if m.table == own),
            rejected=sum(m.file.rows for m in made if m.table == REJECTED.name),
            duplicates=sum(s.duplicates for s in mine) + sum(m.duplicates for m in made),
            reasons=dict(+reasons),
        )
    account = Account(counts)
    for name, count in account.by_source().items():
        if count.rows_in == 0:
            raise UserError(f"sources.{name}.path {plan.sources[name].path}: no rows")
    return account


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
    files = [lake.adopt(file, plan.folder) for file in staged]
    app = application(table.name, part)
    lake.replace(table, app=app, files=files, where=where, metadata={"content": content})


def _record(
    plan: Plan,
    account: Account,
    contents: Mapping[Part, str],
    before: Mapping[Part, tuple[str, Count]],
    started: datetime,
) -> None:
    """Enter the run with the versions of its tables, unless this very state is entered."""
    versions = {name: plan.lake.version(name) for name in ORDER if plan.lake.exists(name)}
    parts = {part: count for part, (_, count) in before.items()} | dict(account.parts)
    hashes = {part: content for part, (content, _) in before.items()} | dict(contents)
    state = json.dumps([versions, sorted(hashes.items())])
    config: dict[str, Any] = {
        "buckets": plan.buckets,
        "secret_check": secret_check(plan.secret),
        "sources": {name: s.model_dump(mode="json") for name, s in plan.sources.items()},
        "parts": to_stored(Account(parts), hashes),
    }
    plan.lake.record_run(
        "ingest",
        hashlib.sha256(state.encode()).hexdigest()[:16],
        config,
        account.to_json(),
        started_at=started,
        versions=versions,
    )
