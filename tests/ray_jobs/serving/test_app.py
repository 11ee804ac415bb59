"""The endpoint on Ray Serve, over real HTTP, with a small scorer in the model's place."""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import polars as pl
import pytest
import ray
from ray import cloudpickle

from models.data.history import History, HistoryConfig, view
from models.data.keys import user_key
from models.data.schema import UserError
from ray_jobs.config import Config, Profile, ServeConfig
from ray_jobs.serving import api, app, auth, convert
from ray_jobs.serving.social import GraphReader

TOKEN = "c0rrect-horse.battery-staple"
SECRET = "only-for-tests-0123456789"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
AS_OF = "2024-05-20T12:00:00Z"
REASON = pl.List(pl.Struct({"code": pl.String, "text": pl.String, "effect": pl.Float64}))

# replicas cannot import a test
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class CountingScorer:
    """Scores 0–100 as the number of events seen; breaks on an event of type `poison`."""

    artifact = SimpleNamespace(sha256="ab" * 32)
    spec = SimpleNamespace(precision="fp32", tasks={"default_30d": SimpleNamespace(kind="binary")})

    def score(self, history: History, rows: pl.DataFrame) -> pl.DataFrame:
        seen = view(history, rows, HistoryConfig())
        if (seen.events["event_type"] == "poison").any():
            raise RuntimeError(f"what the user wrote: {seen.texts['text'].to_list()}")
        counts = seen.events.group_by("row").agg(n=pl.len())
        n = seen.rows.join(counts, on="row", how="left", maintain_order="left")["n"].fill_null(0)
        known = pl.Series([None] * len(n), dtype=pl.Float64)
        if seen.social is not None:
            known = seen.social["device_nodes"]
        return seen.rows.select(
            "row", "user_key", "as_of", "baseline_date", "graph_date", "saturated"
        ).with_columns(
            default_30d=pl.struct(probability=pl.lit(0.1), low=pl.lit(0.05), high=pl.lit(0.2)),
            score=n.cast(pl.Float64),
            grade=pl.lit("A"),
            weights=pl.struct(text=pl.lit(0.2), social=known),
            reasons=pl.lit([], dtype=REASON),
            decision=pl.struct(
                action=pl.lit("review"),
                review_level=pl.lit("light"),
                limit=pl.lit(None, pl.Float64),
                tier=pl.lit("basic"),
            ),
            model_sha256=pl.lit("ab" * 32),
        )


def load(path: str) -> CountingScorer:
    if not path.endswith("good"):
        raise UserError(f"{path}: changed since it was written (SHA-256 differs)")
    return CountingScorer()


def read_graph(date: datetime, bucket: int) -> pl.DataFrame | None:
    if (date.year, date.month) != (2024, 5):
        return None
    keys = [user_key(SECRET.encode(), "tied")]
    return pl.DataFrame(
        {
            "user_key": pl.Series(keys, dtype=pl.Int64),
            "graph_date": pl.Series([date] * len(keys), dtype=convert.TIMES),
            "device_nodes": pl.Series([0.75] * len(keys), dtype=pl.Float64),
        }
    )


def config(secret_file: Path, **options: Any) -> Config:
    """The parts of a configuration that serving reads."""
    return Config.model_construct(
        serve=ServeConfig(port=0, timeout_s=3, **options),
        profile=Profile(numeric=("age",)),
        sources={
            "orders": SimpleNamespace(table="events", columns={}, timezone="UTC", lag=timedelta(0))
        },
        secret_file=str(secret_file),
    )


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the token and the secret; the environment names the token's file."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "secret").write_text(f"{SECRET}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(auth.TOKEN_FILE, str(folder / "token"))
        yield folder


@pytest.fixture(scope="module")
def url(ray_cluster: None, secrets: Path) -> Iterator[str]:
    options = config(secrets / "secret")
    yield app.start(options, "model/good", graph=GraphReader(read_graph, 1), load=load)
    app.stop()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30, headers=HEADERS, trust_env=False) as made:
        yield made


def event(event_id: int | str, **fields: Any) -> dict[str, Any]:
    time = "2024-05-02T09:30:00+02:00"
    return {"event_id": event_id, "event_time": time, "event_type": "pay", **fields}


def request(user_id: str = "u1", events: int = 0, **fields: Any) -> dict[str, Any]:
    some = [event(i) for i in range(events)]
    return {"user_id": user_id, "as_of": AS_OF, "events": some, **fields}


def test_scores_over_http(client: httpx.Client) -> None:
    asked = request("tied", 3, profile={"age": 41}, proposed={"amount": "99.50"})
    answer = client.post("/v1/score", json=asked)
    assert answer.status_code == 200
    scored = api.ScoreResponse.model_validate_json(answer.content)
    assert (scored.score, scored.model_sha256) == (3.0, "ab" * 32)
    assert scored.weights["social"] == 0.75
    assert scored.request_id == answer.headers["x-request-id"]
    assert "tied" not in answer.text


def test_health_and_model(client: httpx.Client) -> None:
    health = client.get("/healthz", headers={"Authorization": ""})
    assert health.json() == {"status": "ok"}
    assert client.get("/v1/model").json()["tasks"] == {"default_30d": "binary"}


def test_requests_that_arrive_together_do_not_mix(client: httpx.Client) -> None:
    def ask(n: int) -> tuple[int, float]:
        answer = client.post("/v1/score", json=request("same user", n))
        return answer.status_code, answer.json()["score"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    assert answers == [(200, float(n)) for n in range(24)]


def test_a_batch_is_scored_together_or_for_a_poisoned_request_apart(secrets: Path) -> None:
    settings = app.Settings(
        config=config(secrets / "secret"),
        model="model/good",
        token_file=str(secrets / "token"),
        load=load,
        graph=GraphReader(read_graph, 1),
    )
    endpoint = app.Endpoint(settings)

    def parsed(asked: dict[str, Any]) -> api.ScoreRequest:
        return api.parse(json.dumps(asked).encode(), api.terms_of(settings.config))

    asked = [parsed(request("same user", n)) for n in range(4)]
    scores = [one["score"] for one in endpoint._score_together(asked)]
    assert scores == [0.0, 1.0, 2.0, 3.0]
    poison = request("same user", events=1)
    poison["events"][0]["event_type"] = "poison"
    asked.insert(2, parsed(poison))
    first, second, broken, *others = endpoint._score_each(asked)
    assert isinstance(broken, RuntimeError)
    rest = [first, second, *others]
    assert [one["score"] for one in rest if not isinstance(one, BaseException)] == scores


def test_a_request_that_breaks_the_scorer_fails_alone(client: httpx.Client) -> None:
    poison = request("u2", events=1)
    poison["events"][0] |= {"event_type": "poison", "text": "my private matter"}

    def ask(n: int) -> httpx.Response:
        return client.post("/v1/score", json=poison if n == 3 else request("u1", n))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert [a.status_code for a in answers] == [500 if n == 3 else 200 for n in range(8)]
    assert answers[3].json() == {
        "error": "internal error",
        "request_id": answers[3].headers["x-request-id"],
        "faults": [],
    }


def bad(body: object) -> bytes:
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (bad(request(profile={"age": float("nan")})), 422),
        (bad(request(proposed={"amount": float("inf")})), 422),
        (bad({**request(), "score": 100}), 422),
        (bad(request(events=10_000)), 422),
        (bad(request(as_of="2024-05-20T12:00:00")), 422),
        (bad(request(as_of="2124-05-20T12:00:00Z")), 422),
        (bad(request(events=1)).replace(b"+02:00", b""), 422),
        (b"{", 422),
        (b"", 422),
        (b" " * (api.MAX_BODY + 1), 413),
        (b" " * (20 * api.MAX_BODY), 413),
    ],
    ids=lambda value: value[:60].decode() if isinstance(value, bytes) else str(value),
)
def test_bad_requests(body: bytes, status: int, client: httpx.Client) -> None:
    answer = client.post("/v1/score", content=body)
    assert answer.status_code == status
    assert api.ErrorResponse.model_validate_json(answer.content).error


def test_body_over_the_limit_without_its_length(client: httpx.Client) -> None:
    chunks = (b" " * 65_536 for _ in range(64))
    assert client.post("/v1/score", content=chunks).status_code == 413


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", TOKEN, f"Basic {TOKEN}"])
def test_no_token(authorization: str, client: httpx.Client) -> None:
    answer = client.post("/v1/score", json=request(), headers={"Authorization": authorization})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_unknown_route_method_and_type(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 404
    assert client.get("/v1/score").status_code == 405
    plain = {"Content-Type": "text/plain"}
    assert client.post("/v1/score", content=b"{}", headers=plain).status_code == 415


def test_a_stalled_body_is_cut_off(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = [
        "POST /v1/score HTTP/1.1",
        "Host: test",
        "Content-Length: 100",
        "X-Request-Timeout-Seconds: 0",  # asks Ray Serve for no limit
        *(f"{name}: {value}" for name, value in HEADERS.items()),
    ]
    with socket.create_connection((host, int(port)), timeout=20) as stalled:
        stalled.sendall("\r\n".join([*head, "", "{"]).encode())
        assert stalled.recv(4096).startswith(b"HTTP/1.1 408")


def test_neither_token_nor_secret_nor_texts_are_in_the_logs(
    client: httpx.Client,
) -> None:
    assert client.get("/v1/model").status_code == 200
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    held = [path for path in session.rglob("*") if path.is_file() and not path.is_symlink()]
    assert held
    for path in held:
        content = path.read_bytes()
        for private in (TOKEN, SECRET, "my private matter"):
            assert private.encode() not in content, path


def test_does_not_start_without_a_token(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(auth.TOKEN_FILE)
    monkeypatch.delenv("RAYCREDIT_API_TOKEN", raising=False)
    with pytest.raises(UserError, match="RAYCREDIT_API_TOKEN: no token"):
        app.start(config(secrets / "secret"), "model/good", load=load)


def test_does_not_start_without_a_secret(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        app.start(config(secrets / "nothing"), "model/good", load=load)


def test_an_endpoint_that_does_not_answer_is_not_left_behind(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = []
    monkeypatch.setattr(app.serve, "start", lambda **_: None)
    monkeypatch.setattr(app.serve, "run", lambda *_, **__: None)
    monkeypatch.setattr(app.serve, "status", lambda: SimpleNamespace(applications={}))
    monkeypatch.setattr(app, "ANSWERS_WITHIN_S", 0.0)
    monkeypatch.setattr(app, "stop", lambda: stopped.append("stopped"))
    with pytest.raises(UserError, match="no answer"):
        app.start(config(secrets / "secret"), "model/good", load=load)
    assert stopped == ["stopped"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_it_is_told_to_stop(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    monkeypatch.setattr(app, "start", lambda *_, **__: "http://127.0.0.1:1")
    monkeypatch.setattr(app, "say", lambda _: os.kill(os.getpid(), number))
    monkeypatch.setattr(app, "stop", lambda: done.append("stopped"))
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        app.serve_forever(Config.model_construct(), "model/good")
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert done == ["stopped"]


def test_a_damaged_model_is_one_clear_line_and_the_one_before_serves_on(
    client: httpx.Client, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "STARTS", 1)
    options = config(secrets / "secret")
    with pytest.raises(UserError, match=r"^model/bad: changed since it was written"):
        app.start(options, "model/bad", load=load)
    for n in range(4):
        assert client.post("/v1/score", json=request("u1", n)).json()["score"] == n
