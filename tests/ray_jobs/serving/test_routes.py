"""The HTTP application behind its guard, without Ray: every answer that a caller can provoke."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from starlette.types import Message

from ray_jobs.serving import api, routes
from ray_jobs.serving.auth import Token
from ray_jobs.serving.guard import Guard, request_id

TOKEN = "c0rrect-horse.battery"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
MODEL = api.ModelResponse(model_sha256="ab" * 32, precision="fp32", tasks={"default_30d": "binary"})
MAX_BODY = 2_000
TIMEOUT_S = 0.3
MAY = datetime(2024, 5, 1, tzinfo=UTC)
BODY = json.dumps({"user_id": "u1", "as_of": "2024-05-20T12:00:00Z"}).encode()


async def score(request: api.ScoreRequest) -> Mapping[str, Any]:
    if request.user_id == "slow":
        await asyncio.Event().wait()
    if request.user_id == "broken":
        raise RuntimeError(f"cannot score {request.user_id}")
    return {
        "as_of": request.as_of,
        "baseline_date": MAY,
        "graph_date": MAY,
        "saturated": False,
        "default_30d": {"probability": 0.04, "low": 0.03, "high": 0.06},
        "score": 80.0,
        "grade": "BB",
        "weights": {"text": None, "behaviour": 0.3, "tabular": 0.7, "social": None},
        "reasons": [],
        "decision": {"action": "approve", "review_level": None, "limit": 10.0, "tier": "gold"},
        "model_sha256": "ab" * 32,
    }


def application() -> Guard:
    return Guard(
        routes.application(score, MODEL, api.Terms()),
        token=Token(hashlib.sha256(TOKEN.encode()).digest()),
        open_paths=[routes.HEALTH],
        max_body=MAX_BODY,
        timeout_s=TIMEOUT_S,
    )


def call(
    method: str = "POST",
    path: str = "/v1/score",
    content: bytes | AsyncIterator[bytes] = BODY,
    headers: Mapping[str, str] = HEADERS,
) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(application())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(run())


async def chunks(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


def test_scores() -> None:
    answer = call(headers={**HEADERS, "X-Request-ID": "order-17"})
    assert answer.status_code == 200
    scored = api.ScoreResponse.model_validate_json(answer.content)
    assert (scored.score, scored.grade, scored.request_id) == (80.0, "BB", "order-17")
    assert scored.estimates["default_30d"] == api.Probability(probability=0.04, low=0.03, high=0.06)


def test_says_which_model_answers() -> None:
    answer = call("GET", "/v1/model", b"")
    assert api.ModelResponse.model_validate_json(answer.content) == MODEL


def test_health_needs_no_token_and_tells_nothing() -> None:
    answer = call("GET", "/healthz", b"", {})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "authorization",
    [None, "", TOKEN, "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}é"],
)
@pytest.mark.parametrize("path", ["/v1/score", "/v1/model", "/docs", "/openapi.json", "/healthz/"])
def test_no_token_no_answer(authorization: str | None, path: str) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    sent = {name: value.encode() for name, value in headers.items()}
    answer = call(path=path, headers=sent, content=b"not even JSON")  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_two_authorizations_are_none() -> None:
    both = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer wrong")]
    assert call(headers=both).status_code == 401  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"NaN", b'{"user_id": NaN}', b'{"user_id": "u1", "x": 1}',
     b'{"user_id": "u1", "profile": {"age": NaN}}', b'{"user_id": "u1", "profile": {"a": 1e999}}',
     b'{"user_id": "u1", "proposed": {"amount": Infinity}}', b"[" * 1000, b"\xff\xfe{}",
     b'{"user_id": "u1", "as_of": "2024-05-20T12:00:00"}',
     b'{"user_id": "u1", "as_of": "2924-05-20T12:00:00Z"}'],
)  # fmt: skip
def test_bad_requests_are_named_and_not_repeated(body: bytes) -> None:
    answer = call(content=body)
    assert answer.status_code == 422
    wrong = api.ErrorResponse.model_validate_json(answer.content)
    assert wrong.faults
    assert "NaN" not in answer.text


@pytest.mark.parametrize("kind", ["text/plain", "", "application/jsonp", "multipart/form-data"])
def test_only_json(kind: str) -> None:
    assert call(headers={**HEADERS, "Content-Type": kind}).status_code == 415


def test_json_with_a_character_set() -> None:
    kind = "Application/JSON; charset=utf-8"
    assert call(headers={**HEADERS, "Content-Type": kind}).status_code == 200


def test_body_at_the_limit() -> None:
    assert call(content=BODY.ljust(MAX_BODY)).status_code == 200
    assert call(content=BODY.ljust(MAX_BODY + 1)).status_code == 413


def test_body_over_the_limit_without_its_length() -> None:
    assert call(content=chunks(4, MAX_BODY // 2)).status_code == 413


@pytest.mark.parametrize("announced", ["9" * 5000, "²", "-1", "x"])
def test_absurd_lengths(announced: str) -> None:
    headers = {**HEADERS, "Content-Length": announced}
    sent = {name: value.encode() for name, value in headers.items()}
    assert call(headers=sent).status_code in (200, 413)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("POST", "/v2/score", 404), ("POST", "/v1/score/", 404),
     ("GET", "/docs", 404), ("GET", "/openapi.json", 404), ("GET", "/v1/score", 405),
     ("POST", "/v1/model", 405), ("DELETE", "/healthz", 405)],
)  # fmt: skip
def test_unknown_routes_and_methods(method: str, path: str, status: int) -> None:
    answer = call(method, path)
    assert answer.status_code == status
    assert api.ErrorResponse.model_validate_json(answer.content).request_id


def test_a_bug_shows_nothing_and_logs_no_content(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = call(content=b'{"user_id": "broken"}', headers={**HEADERS, "X-Request-ID": "r-9"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal error", "request_id": "r-9", "faults": []}
    assert "r-9: RuntimeError" in caplog.text
    assert "in score" in caplog.text
    assert "cannot score broken" not in caplog.text


def test_an_answer_that_takes_too_long() -> None:
    answer = call(content=b'{"user_id": "slow"}')
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def sent_by(receive: Callable[[], Any]) -> list[Message]:
    """What the application sends when its caller's messages come from `receive`."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/score",
        "query_string": b"",
        "headers": [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()],
    }
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(application()(scope, receive, send))
    return sent


def test_a_body_that_stalls() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    assert sent_by(receive)[0]["status"] == 408


def test_a_caller_that_leaves(caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    assert sent_by(receive)[0]["status"] == 499
    assert caplog.text == ""


def test_request_ids_are_harmless() -> None:
    assert request_id("order-17.a_B") == "order-17.a_B"
    for given in (None, "", "a b", "a\nb", "x" * 129, "<script>", "é"):
        assert given != request_id(given)
        assert request_id(given) != request_id(given)
