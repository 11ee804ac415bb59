"""What became of every row of an ingest: rows in = accepted + rejected + duplicates."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.table import Table

from models.data.clean import ERASED

Part = tuple[str, str]  # a source and a period


@dataclass(frozen=True, kw_only=True)
class Count:
    """Rows of a source (and period), and why some were rejected."""

    rows_in: int = 0
    accepted: int = 0
    rejected: int = 0
    duplicates: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    unchanged: bool = False  # counted by the earlier run that published the same files

    def __post_init__(self) -> None:
        parts = self.accepted + self.rejected + self.duplicates
        assert self.rows_in == parts, f"{self.rows_in} rows in, {parts} accounted for"
        assert self.rejected == sum(self.reasons.values()), "every rejected row has a reason"

    def less(self, rows: int) -> "Count":
        """This count with accepted rows that have become those of an erased user."""
        if not rows:
            return self
        return replace(
            self,
            accepted=self.accepted - rows,
            rejected=self.rejected + rows,
            reasons={**self.reasons, ERASED: self.reasons.get(ERASED, 0) + rows},
        )

    def to_json(self) -> dict[str, int]:
        """The four counts."""
        return {
            "rows_in": self.rows_in,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "duplicates": self.duplicates,
        }


@dataclass(frozen=True)
class Account:
    """The counts of an ingest, by source and period."""

    parts: Mapping[Part, Count]

    @property
    def unchanged(self) -> bool:
        """Whether no source had anything new."""
        return all(count.unchanged for count in self.parts.values())

    @property
    def total(self) -> Count:
        """All sources together."""
        return _sum(self.parts.values())

    def by_source(self) -> dict[str, Count]:
        """The counts of each source, in order of name."""
        names = sorted({source for source, _ in self.parts})
        return {n: _sum(c for (source, _), c in self.parts.items() if source == n) for n in names}

    def to_json(self) -> dict[str, int]:
        """The counts of all sources together."""
        return self.total.to_json()

    def table(self) -> Table:
        """The account for a terminal, a line a source, with the commonest reasons."""
        table = Table(title="ingest")
        table.add_column("source")
        for heading in ("rows in", "accepted", "rejected", "duplicates"):
            table.add_column(heading, justify="right")
        table.add_column("rejected because")
        for name, count in self.by_source().items():
            common = Counter(count.reasons).most_common(3)
            why = "; ".join(f"{reason} ({n:,})" for reason, n in common)
            table.add_row(
                f"{name} (unchanged)" if count.unchanged else name,
                *(f"{n:,}" for n in count.to_json().values()),
                why,
            )
        return table


def _sum(counts: Iterable[Count]) -> Count:
    every = list(counts)
    reasons: Counter[str] = Counter()
    for count in every:
        reasons.update(count.reasons)
    return Count(
        rows_in=sum(c.rows_in for c in every),
        accepted=sum(c.accepted for c in every),
        rejected=sum(c.rejected for c in every),
        duplicates=sum(c.duplicates for c in every),
        reasons=dict(reasons),
        unchanged=all(c.unchanged for c in every),
    )


def to_stored(account: Account, contents: Mapping[Part, str]) -> list[dict[str, Any]]:
    """The account with each part's content hash, as a row of `runs` keeps it."""
    return [
        {
            "source": source,
            "period": period,
            "content": contents[source, period],
            **count.to_json(),
            "reasons": dict(count.reasons),
        }
        for (source, period), count in sorted(account.parts.items())
    ]


def from_stored(rows: Iterable[Mapping[str, Any]]) -> dict[Part, tuple[str, Count]]:
    """The content hash and the counts of each part of an earlier run."""
    counts = ("rows_in", "accepted", "rejected", "duplicates", "reasons")
    return {
        (row["source"], row["period"]): (
            row["content"],
            Count(**{name: row[name] for name in counts}, unchanged=True),
        )
        for row in rows
    }
