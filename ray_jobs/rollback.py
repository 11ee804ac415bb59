"""What an ingest that was killed between two commits had published is taken back."""

from collections.abc import Container, Mapping

from models.data.schema import Table
from ray_jobs.account import Part
from ray_jobs.commits import BY
from ray_jobs.lake import Lake
from ray_jobs.storage import DataFile, digest_of


def application(table: str, part: Part) -> str:
    """The name under which ingest publishes a source and period in a table."""
    return f"ingest/{table}/{part[0]}/{part[1]}"


def roll_back(lake: Lake, tables: Mapping[str, Table], anew: Container[Part], by: str) -> None:
    """Make every source and period as the last finished run left it, but for those in `anew`,
    which are about to be published. The commits say that they are made `by` this ingest.

    Readers never saw what is taken back: they read the versions that a finished run names. But
    the next run names the newest, and its files may no longer be those of the run that was
    killed. An ingest that still runs looks like a killed one: it notices, and enters nothing.
    Raises UserError when a file of the last ingest is gone.
    """
    run = lake.state()
    versions: Mapping[str, int] = {} if run is None else run["table_versions"]
    for name, table in tables.items():
        version = versions.get(name)
        if not lake.exists(name) or lake.version(name) == version:
            continue
        left = {} if version is None else _files(lake, name, version)
        for part in sorted({*left, *_files(lake, name, None)}):
            app = application(name, part)
            since = 0 if version is None else lake.generation(name, app, version)
            if part not in anew and lake.generation(name, app) != since:
                files = [DataFile(path, n, *digest_of(path)) for path, n in left.get(part, [])]
                where = {"source": part[0], "period": part[1]}
                lake.replace(table, app=app, files=files, where=where, metadata={BY: by})


def _files(lake: Lake, table: str, version: int | None) -> dict[Part, list[tuple[str, int]]]:
    """The files of each source and period of a table's version, with their rows."""
    found: dict[Part, list[tuple[str, int]]] = {}
    for file in lake.files(table, version=version):
        part = file["partition"]["source"], file["partition"]["period"]
        found.setdefault(part, []).append((file["path"], file["num_records"]))
    return found
