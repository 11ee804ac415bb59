"""What the commits of the lake's tables say of themselves: who has changed a table, and how."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from models.data.schema import IDENTITIES
from ray_jobs.account import Part
from ray_jobs.lake import Lake
from ray_jobs.storage import FILES_AT_ONCE, filesystem

LOG = "_delta_log"  # a table's folder of commits

# What the metadata of commits notes.
BY = "by"  # the ingest that made it
COMPACTED = "compacted"  # the files merged
SPLIT = "split"  # the files split
ERASURE = "erased"  # user hash → rows removed
ERASED_PARTS = "erased_parts"  # [[source, period, rows removed], …]

Commit = dict[str, Any]


def commits(lake: Lake, table: str, after: int, until: int) -> list[Commit]:
    """The commits of a table after a version and up to another; what each notes is JSON.

    Read from the log: `DeltaTable.history` of deltalake 1.6.6 counts back from the version of its
    handle, so that a commit which lands meanwhile shifts the numbers of all.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        several = pool.map(partial(actions_of, lake, table), range(after + 1, until + 1))
        return [action["commitInfo"] for own in several for action in own if "commitInfo" in action]


def actions_of(lake: Lake, table: str, version: int) -> list[dict[str, Any]]:
    """The actions of a commit. Raises FileNotFoundError where the log no longer has it."""
    system, file = filesystem(lake.url(table, LOG, f"{version:020}.json"))
    with system.open_input_stream(file, compression=None) as stream:
        return [json.loads(line) for line in stream.read().splitlines() if line]


def changed_by_others(
    lake: Lake, since: Mapping[str, int], until: Mapping[str, int], own: Callable[[Commit], bool]
) -> str | None:
    """A table whose rows another job changed between two versions; None when there is none.

    `own` tells the caller's commits. A table that `since` does not name is new.
    """
    for table, version in until.items():
        for commit in commits(lake, table, since.get(table, -1), version):
            is_empty = commit["operation"] == "CREATE TABLE"
            if not (is_empty or {COMPACTED, SPLIT} & commit.keys() or own(commit)):
                return table
    return None


def erased_rows(lake: Lake, since: Mapping[str, int], until: Mapping[str, int]) -> Counter[Part]:
    """The rows of each source and period that erasures removed between two versions.

    Where they removed identities alone, which no account counts, that is 0.
    """
    gone: Counter[Part] = Counter()
    for table in since.keys() & until.keys():
        for commit in commits(lake, table, since[table], until[table]):
            for source, period, rows in json.loads(commit.get(ERASED_PARTS, "[]")):
                gone[source, period] += rows if table != IDENTITIES.name else 0
    return gone
