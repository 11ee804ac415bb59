"""What may go: data files that no kept version of a table needs, old history, killed ingests."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import polars as pl
from deltalake import DeltaTable
from pyarrow import fs

from models.data.schema import UserError
from ray_jobs.commits import LOG, actions_of
from ray_jobs.exchange import STAGING
from ray_jobs.lake import Lake
from ray_jobs.runs import RUNS
from ray_jobs.storage import STAGING_KEPT, filesystem, last_written

_VERSION = re.compile(r"(\d{20})\.")


@dataclass(frozen=True)
class Freed:
    """What was deleted of a table."""

    files: int = 0
    bytes: int = 0
    log_files: int = 0


def versions_needed(lake: Lake, since: datetime) -> dict[str, set[int]]:
    """Table → versions that must stay readable: those that the other jobs read, and those that
    rows of `runs` and `models` from `since` on name, which makes their scores replayable."""
    state = lake.state()
    named = [json.dumps(state["table_versions"])] if state else []
    for table, at, versions in (
        (RUNS.name, "finished_at", "table_versions"),
        ("models", "at", "versions"),
    ):
        if lake.exists(table):
            named += lake.read(table).filter(pl.col(at) >= since)[versions].to_list()
    needed: dict[str, set[int]] = {}
    for text in named:
        for name, version in json.loads(text).items():
            needed.setdefault(name, set()).add(version)
    return needed


def vacuum(lake: Lake, table: str, keep: Iterable[int], since: datetime) -> Freed:
    """Delete what neither a version that was current at `since` or later nor one of `keep` needs.

    That is data files, those of killed jobs included once they are older than `since`, and the
    history before the first kept version. With `since` at this moment, the files that another job
    has written and not yet published would go too: run it alone then.
    """
    newest, times, added = _history(lake, table)
    old = [version for version, at in times.items() if at <= since]
    base = max(old, default=min(times, default=newest))
    kept = {base} | {
        version for version in keep if version < base and _is_there(lake, table, version)
    }
    needed = {file["path"] for v in kept for file in lake.files(table, version=v)}
    needed |= {path for version, paths in added.items() if version > base for path in paths}
    system, _ = filesystem(lake.root)
    gone = [
        info
        for info in _below(system, filesystem(lake.url(table))[1])
        if f"/{LOG}/" not in info.path
        and _url(lake, info.path) not in needed
        and info.mtime <= since
    ]
    log = _cut_history(lake, table, min(kept))
    for info in gone:
        system.delete_file(info.path)
    return Freed(len(gone), sum(info.size for info in gone), log)


def remove_dead_staging(lake: Lake, now: datetime, kept: timedelta = STAGING_KEPT) -> int:
    """Delete the staging folders of killed ingests; how many.

    One counts as dead when nothing in it was written for `kept`.
    """
    system, root = filesystem(lake.root)
    found = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
    dead = [
        folder
        for folder in found
        if folder.base_name.startswith(STAGING) and last_written(system, folder) <= now - kept
    ]
    for folder in dead:
        system.delete_dir(folder.path)
    return len(dead)


def _below(system: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    selector = fs.FileSelector(folder, allow_not_found=True, recursive=True)
    return [info for info in system.get_file_info(selector) if info.type == fs.FileType.File]


def _url(lake: Lake, path: str) -> str:
    """A path on the lake's file system as the lake names it."""
    return lake.root + path.removeprefix(filesystem(lake.root)[1].rstrip("/"))


def _history(lake: Lake, table: str) -> tuple[int, dict[int, datetime], dict[int, list[str]]]:
    """The newest version; of each commit that is still there its time, and the files it added."""
    newest = lake.version(table)
    times: dict[int, datetime] = {}
    added: dict[int, list[str]] = {}
    for version in range(newest, -1, -1):
        try:
            actions = actions_of(lake, table, version)
        except FileNotFoundError:
            break
        paths = [unquote(action["add"]["path"]) for action in actions if "add" in action]
        added[version] = [lake.url(table, path) for path in paths]
        for action in actions:
            if "commitInfo" in action:
                at = action["commitInfo"]["timestamp"]
                times[version] = datetime.fromtimestamp(at / 1000, UTC)
    return newest, times, added


def _is_there(lake: Lake, table: str, version: int) -> bool:
    """Whether an old version can still be read; its history may have been cut before."""
    try:
        lake.files(table, version=version)
    except UserError:
        return False
    return True


def _cut_history(lake: Lake, table: str, first: int) -> int:
    """Delete the log before a version, which a checkpoint then stands for; how many files."""
    system, folder = filesystem(lake.url(table, LOG))
    entries = [(info, _VERSION.match(info.base_name)) for info in _below(system, folder)]
    before = [info for info, match in entries if match and int(match[1]) < first]
    if before:
        DeltaTable(lake.url(table), version=first).create_checkpoint()
        for info in before:
            system.delete_file(info.path)
    return len(before)
