"""The same model behind FastAPI and uvicorn by hand, one request at a time in each worker:

    python -m tests.bench.peers.serve_fastapi FOLDER WORKERS

FOLDER holds what `tests.bench.serve` prepared. Prints its URL once it answers; ends with its input.
Requests are read, and histories made, by the endpoint's own functions: what differs is the server.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch
from fastapi import FastAPI, Request, Response

from models.scoring.scorer import Scorer
from ray_jobs import jobs, registry, serve
from ray_jobs.config import load
from ray_jobs.secret import read_secret
from ray_jobs.serving import api, convert
from ray_jobs.serving.social import SocialLookup

FOLDER = "RAYCREDIT_BENCH_FOLDER"
HOST = "127.0.0.1"


def application() -> FastAPI:
    """What a worker runs."""
    torch.set_num_threads(1)  # as a replica has
    config = load(str(Path(os.environ[FOLDER]) / "config.json"))
    tables, secret, terms = jobs.tables(config), read_secret(config), api.terms_of(config)
    model = registry.champion(tables.lake).path
    scorer, graph = Scorer.load(model), serve.graph_reader(tables, model)
    assert graph is not None
    ties = SocialLookup(graph)
    made, one_at_a_time = FastAPI(), asyncio.Lock()

    def judge(asked: api.ScoreRequest) -> api.ScoreResponse:
        known = convert.identify([asked], secret)
        social = ties.rows(known["user_key"], known["graph_date"])
        history, rows = convert.to_history([asked], secret=secret, terms=terms, social=social)
        return api.to_response(scorer.score(history, rows).to_dicts()[0], "")

    @made.post("/v1/score")
    async def post_score(request: Request) -> Response:
        asked = api.parse(await request.body(), terms)
        async with one_at_a_time:  # threads that share a core only slow each other down
            found = await asyncio.to_thread(judge, asked)
        return Response(found.model_dump_json(), media_type="application/json")

    @made.get("/healthz")
    async def get_health() -> Response:
        return Response("{}", media_type="application/json")

    return made


def main(folder: str, workers: str) -> None:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", f"{__spec__.name}:application", "--factory"]
    command += ["--host", HOST, "--port", str(port), "--workers", workers, "--log-level", "warning"]
    server = subprocess.Popen(command, env={**os.environ, FOLDER: folder}, stdin=subprocess.DEVNULL)
    try:
        url = f"http://{HOST}:{port}"
        _wait_for(f"{url}/healthz", server)
        print(url, flush=True)
        sys.stdin.read()
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            if server.poll() is not None:
                raise SystemExit("uvicorn ended") from None
            time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
