"""Jobs submitted to a cluster that asks for a token, from a working directory."""

import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ray_jobs import jobs
from ray_jobs.config import load

if TYPE_CHECKING:
    from tests.cluster.conftest import StartHead
    from tests.conftest import SmallShop

CLIENT = """
import asyncio, sys
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient()
job = client.submit_job(entrypoint=sys.argv[1], runtime_env={"working_dir": "."})
async def follow():
    async for lines in client.tail_job_logs(job):
        print(lines, end="")
asyncio.run(follow())
print("status", client.get_job_status(job))
"""


@pytest.mark.cluster
@pytest.mark.parametrize("nodes", [0, 2])
def test_jobs_are_submitted_from_a_working_directory(
    nodes: int, start_head: "StartHead", small_shop: "SmallShop", tmp_path: Path
) -> None:
    """With nodes the head has no CPU: all work is done on them."""
    small_shop.write(tmp_path / "raw")
    config = small_shop.config(tmp_path / "run", str(tmp_path / "raw"))
    head = start_head(cpus=0 if nodes else 2, nodes=nodes)

    for token in ({}, {"Authorization": "Bearer of nothing"}):
        asked = urllib.request.Request(f"{head.address}/api/jobs/", headers=token)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked)
        assert refused.value.code in (401, 403)

    command = ["python", "-m", "ray_jobs", "ingest", "-c", config]
    done = head.run("ray", "job", "submit", "--working-dir", ".", "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    done = head.run("python", "-c", CLIENT, f"python -m ray_jobs snapshot -c {config}")
    assert done.stdout.endswith("status SUCCEEDED\n"), done.stdout + done.stderr

    tables = jobs.tables(load(config))
    assert tables.lake.read("events").height == 720
    assert tables.lake.read("rejected")["reason"].to_list() == ["not JSON"]
    account = tables.lake.latest_run("ingest")
    assert account is not None and account["counts"]["rows_in"] == 720 + 36
    assert len(list((tmp_path / "run" / "work").glob("snapshots/*/snapshot.json"))) == 1
