"""What stands before the application: a pure ASGI middleware with the checks for every route.

In this order: a request id, the token, the size of the body (announced and as counted), a
deadline for the whole request, and an answer without internals when something breaks.
"""

import asyncio
import logging
import re
import traceback
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_jobs.serving.api import ErrorResponse, Fault
from ray_jobs.serving.auth import Token

logger = logging.getLogger("ray.serve")
REQUEST_ID = "raycredit.request_id"  # in the ASGI scope
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass
class _Exchange:
    """How far one request has come."""

    received: int = 0
    complete: bool = False
    answered: bool = False


class Guard:
    """Wraps an ASGI application. `open_paths` need no token."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: Token,
        open_paths: Collection[str],
        max_body: int,
        timeout_s: float,
    ) -> None:
        self.app = app
        self.token = token
        self.open_paths = frozenset(open_paths)
        self.max_body = max_body
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the application has no web socket, and refuses one itself
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope[REQUEST_ID] = request_id(headers.get("x-request-id"))
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._run(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request whose head already shows that it must be refused."""
        given = headers.getlist("authorization")
        admitted = len(given) == 1 and self.token.admits(given[0])
        if scope["path"] not in self.open_paths and not admitted:
            unknown = {"WWW-Authenticate": 'Bearer realm="raycredit"'}
            return answer(scope, 401, "a valid bearer token is needed", headers=unknown)
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self.max_body:
            return answer(scope, 413, self._too_large())
        return None

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange()

        async def counted_receive() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                exchange.received += len(message.get("body", b""))
                exchange.complete = not message.get("more_body", False)
                if exchange.received > self.max_body:
                    raise HTTPException(413, self._too_large())
            return message

        async def watched_send(message: Message) -> None:
            exchange.answered = True
            await send(message)

        failure: Response | None = None
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.app(scope, counted_receive, watched_send)
        except TimeoutError:
            failure = (
                answer(scope, 503, "no answer in time", headers={"Retry-After": "1"})
                if exchange.complete
                else answer(scope, 408, "the body did not arrive in time")
            )
        except Exception as error:
            log_bug(scope[REQUEST_ID], error)
            failure = answer(scope, 500, "internal error")
        if failure is not None and not exchange.answered:
            await failure(scope, receive, send)

    def _too_large(self) -> str:
        return f"the body has more than {self.max_body} bytes"


def request_id(given: str | None) -> str:
    """The caller's id where it is harmless in a log, else a new one."""
    return given if given and _SAFE_ID.fullmatch(given) else uuid.uuid4().hex


def answer(
    scope: Scope,
    status: int,
    error: str,
    faults: list[Fault] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """An answer that is not a score."""
    content = ErrorResponse(error=error, request_id=scope[REQUEST_ID], faults=faults or [])
    return Response(
        content.model_dump_json(), status, headers=headers, media_type="application/json"
    )


def log_bug(where: str, error: BaseException) -> None:
    """Log where it broke, not the message: that may hold what a user wrote."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s: %s\n%s", where, type(error).__name__, frames)
