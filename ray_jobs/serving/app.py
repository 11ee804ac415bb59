"""The Ray Serve application: replicas that score together what arrives together."""

import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, HTTPOptions
from starlette.types import ASGIApp

from models.data.schema import UserError
from models.scoring.scorer import Scorer
from ray_jobs.config import Config
from ray_jobs.progress import say
from ray_jobs.secret import read_secret
from ray_jobs.serving import api, auth, convert, routes
from ray_jobs.serving.batcher import Batcher
from ray_jobs.serving.guard import Guard, log_bug
from ray_jobs.serving.social import GraphReader, SocialLookup

APPLICATION = "raycredit"
STARTS = 2  # attempts to start a replica before the deployment counts as failed
ANSWERS_WITHIN_S = 30.0  # from running replicas to the first answer over HTTP
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to reach what listens everywhere

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a replica is started with; Ray stores and logs it, so neither token nor secret is in it.

    `token_file` and the configuration's `secret_file` name files that every node can read; where
    None, the replica's own environment has the value. `load` reads `model`. `graph` reads a graph
    snapshot.
    """

    config: Config
    model: str
    token_file: str | None
    load: Callable[[str], Scorer]
    graph: GraphReader | None


class Endpoint:
    """One replica, which scores together what arrives while it scores."""

    def __init__(self, settings: Settings) -> None:
        self._options = settings.config.serve
        self._terms = api.terms_of(settings.config)
        self._token = auth.read_token(self._options.token_env, settings.token_file)
        self._secret = read_secret(settings.config)
        self._social = SocialLookup(settings.graph) if settings.graph else None
        self._scorer = settings.load(settings.model)
        # What is set up on first use is set up now, and a model that cannot score never serves.
        self._score_together([_warm_up()])

    def __serve_build_asgi_app__(self) -> ASGIApp:
        spec, options = self._scorer.spec, self._options
        model = api.ModelResponse(
            model_sha256=self._scorer.artifact.sha256,
            precision=spec.precision,
            tasks={name: task.kind for name, task in spec.tasks.items()},
        )
        score = Batcher(self._score_each, options.max_batch)
        return Guard(
            routes.application(score, model, self._terms),
            token=self._token,
            open_paths=[routes.HEALTH],
            max_body=api.MAX_BODY,
            timeout_s=options.timeout_s,
        )

    def _score_each(self, requests: Sequence[api.ScoreRequest]) -> list[Row | BaseException]:
        """Scores of a batch; where it breaks, one by one, so that no request fails for another."""
        try:
            return [*self._score_together(requests)]
        except BaseException as error:
            if len(requests) == 1:
                return [error]
            log_bug(f"batch of {len(requests)}", error)
            return [one for request in requests for one in self._score_each([request])]

    def _score_together(self, requests: Sequence[api.ScoreRequest]) -> Sequence[Row]:
        social = None
        if self._social is not None:
            asked = convert.identify(requests, self._secret)
            social = self._social.rows(asked["user_key"], asked["graph_date"])
        history, rows = convert.to_history(
            requests, secret=self._secret, terms=self._terms, social=social
        )
        return self._scorer.score(history, rows).to_dicts()


def _warm_up() -> api.ScoreRequest:
    """A request that goes every way through the model."""
    now = datetime.now(UTC)
    event = {"event_id": 1, "event_time": now - timedelta(days=1), "event_type": "warm-up"}
    return api.ScoreRequest.model_validate(
        {
            "user_id": "warm-up",
            "as_of": now,
            "events": ({**event, "amount": 1, "text": "warm-up"},),
            "proposed": {"amount": 1},
        }
    )


def build(
    config: Config,
    model: str,
    *,
    graph: GraphReader | None = None,
    load: Callable[[str], Scorer] = Scorer.load,
) -> Application:
    """The application for a model's folder. `graph` reads graph snapshots; None: no ties known."""
    options = config.serve
    if config.secret_file is not None:  # a replica may have another working directory
        config = config.model_copy(update={"secret_file": os.path.abspath(config.secret_file)})
    settings = Settings(
        config=config, model=model, token_file=auth.token_file(), load=load, graph=graph
    )
    deployment = serve.deployment(
        name="score",
        ray_actor_options={"num_cpus": options.cpus_per_replica},
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            target_ongoing_requests=max(1.0, options.max_ongoing_requests / 2),
        ),
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_replicas * options.max_ongoing_requests,
        max_constructor_retry_count=STARTS,
        max_surge_percent=100,  # the replicas of the model before serve until the new ones do
    )(serve.ingress()(Endpoint))
    return deployment.bind(settings)


def start(
    config: Config,
    model: str,
    *,
    graph: GraphReader | None = None,
    load: Callable[[str], Scorer] = Scorer.load,
) -> str:
    """Serve a model on the Ray that this process is connected to; its URL once it answers.

    Raises UserError with one line where the token, the secret or the model is not as it must be.
    """
    options = config.serve
    auth.read_token(options.token_env, auth.token_file())
    read_secret(config)
    port = options.port or _free_port(options.host)
    serve.start(
        http_options=HTTPOptions(
            host=options.host, port=port, request_timeout_s=options.timeout_s + 1
        )
    )
    replaces = APPLICATION in serve.status().applications
    url = f"http://{_in_url(ANYWHERE.get(options.host, options.host))}:{port}"
    try:
        serve.run(build(config, model, graph=graph, load=load), name=APPLICATION, route_prefix="/")
        _wait_for(url + routes.HEALTH)
    except (RuntimeError, UserError) as error:
        cause = _cause()
        if not replaces:
            stop()
        raise cause or error from error
    return url


def stop() -> None:
    """Stop the endpoint, and Ray Serve with it where nothing else is served."""
    served = set(serve.status().applications)
    if APPLICATION in served:
        serve.delete(APPLICATION)
    if served <= {APPLICATION}:
        serve.shutdown()


def serve_forever(config: Config, model: str, *, graph: GraphReader | None = None) -> None:
    """Serve until interrupted or terminated."""
    url = start(config, model, graph=graph)
    asked_to_stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked_to_stop.set())
    say(f"serve: {model} at {url}/v1/score")
    asked_to_stop.wait()
    stop()


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _wait_for(url: str) -> None:
    end = time.monotonic() + ANSWERS_WITHIN_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with direct.open(url, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError) as error:
            if time.monotonic() > end:
                raise UserError(f"{url}: no answer; does another Ray Serve listen?") from error
            time.sleep(0.2)


def _cause() -> UserError | None:
    """The user's mistake that kept the replicas from starting, where it is one."""
    told = [
        deployment.message
        for application in serve.status().applications.values()
        for deployment in application.deployments.values()
    ]
    line = re.search(rf"{UserError.__name__}: (.+)", "\n".join(told))
    return UserError(line.group(1)) if line else None
