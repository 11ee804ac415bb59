"""What became of an ingest's rows: too many faults stop it, and the account balances."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from models.data.clean import ERASED
from models.data.schema import REJECTED, UserError
from ray_jobs.account import Account, Count, Part
from ray_jobs.staging import UNKNOWN_USER, Inspected, Merged, Plan, Staged


def content_of(before: Mapping[Part, tuple[str, Count]], part: Part) -> str | None:
    """The content hash of what an earlier ingest left of a source and period, if it left any."""
    return before[part][0] if part in before else None


def check(
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


def account_of(
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
        if content_of(before, part) == content:
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
