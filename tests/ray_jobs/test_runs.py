"""What the jobs read is one chain of states: of jobs that began from the same, one is entered."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.data.schema import UserError
from ray_jobs import runs
from ray_jobs.lake import Lake

NOW = datetime.now(UTC)


def record(lake: Lake, number: int, after: dict[str, Any] | None, verb: str = "ingest") -> None:
    versions = {"events": number}
    lake.record_state(verb, {}, {"rows_in": number}, versions, after=after, started_at=NOW)


def state(lake: Lake) -> dict[str, Any]:
    found = lake.state()
    assert found is not None
    return found


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def test_a_state_has_one_successor(lake: Lake) -> None:
    record(lake, 1, None)
    first = state(lake)
    with pytest.raises(UserError, match="another job changed the lake meanwhile; run it again"):
        record(lake, 2, None)
    record(lake, 3, first, "erase")
    with pytest.raises(UserError, match="meanwhile"):
        record(lake, 4, first)
    record(lake, 5, state(lake))
    entered = lake.read("runs").sort("finished_at")
    assert entered["table_versions"].to_list() == [f'{{"events": {n}}}' for n in (1, 3, 5)]
    assert state(lake)["counts"] == {"rows_in": 5} and state(lake)["started_at"] == NOW


def test_a_lake_of_an_earlier_version_goes_on(lake: Lake) -> None:
    for number in (1, 2):
        lake.record_run("ingest", f"r{number}", {}, {}, versions={"events": number})
    before = state(lake)
    record(lake, 3, before)
    with pytest.raises(UserError, match="meanwhile"):
        record(lake, 4, before)
    assert state(lake)["table_versions"] == {"events": 3}


def test_the_last_entered_is_the_state_whatever_the_clock(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(lake, 1, None)
    first = state(lake)

    class Behind(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Behind":
            return cls.fromtimestamp((NOW - timedelta(days=1)).timestamp(), tz)

    monkeypatch.setattr(runs, "datetime", Behind)
    record(lake, 2, first)
    assert state(lake)["table_versions"] == {"events": 2}
    assert state(lake)["finished_at"] > first["finished_at"]


def test_jobs_at_one_time(lake: Lake) -> None:
    record(lake, 0, None)
    before, start = state(lake), threading.Barrier(4)
    lost, failed = list[int](), list[BaseException]()

    def enter(number: int) -> None:
        start.wait()
        try:
            record(Lake(lake.root), number, before)
        except UserError:
            lost.append(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=enter, args=[number]) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {1, 2, 3, 4} - set(lost) == {state(lake)["table_versions"]["events"]}
    assert lake.read("runs").height == 2
