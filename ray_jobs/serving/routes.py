"""The HTTP application: three routes, and an answer without internals for every fault."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ray_jobs.serving import api
from ray_jobs.serving.guard import REQUEST_ID, answer

HEALTH = "/healthz"
JSON = "application/json"

Score = Callable[[api.ScoreRequest], Awaitable[Mapping[str, Any]]]


def application(score: Score, model: api.ModelResponse, terms: api.Terms) -> FastAPI:
    """The routes over `score`, which gives one row of `Scorer.score` as a dict.

    There is no page of documentation: it would need no token, and lists every route.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _broken)

    async def read(request: Request) -> api.ScoreRequest:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != JSON:
            raise HTTPException(415, f"expected Content-Type: {JSON}")
        try:
            return api.parse(await request.body(), terms)
        except ValidationError as error:
            raise RequestValidationError(api.details(error)) from None

    @app.post("/v1/score")
    async def post_score(
        request: Request, asked: Annotated[api.ScoreRequest, Depends(read)]
    ) -> Response:
        scored = api.to_response(await score(asked), request.scope[REQUEST_ID])
        return Response(scored.model_dump_json(), media_type=JSON)

    @app.get("/v1/model")
    async def get_model() -> Response:
        return Response(model.model_dump_json(), media_type=JSON)

    @app.get(HEALTH)
    async def get_health() -> Response:
        return Response('{"status":"ok"}', media_type=JSON)

    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return answer(request.scope, error.status_code, error.detail, headers=headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """FastAPI's own handler repeats the input, and fails on a NaN in it."""
    assert isinstance(error, RequestValidationError)
    return answer(request.scope, 422, "the request is not valid", api.faults(error.errors()))


async def _left(request: Request, error: Exception) -> Response:
    """For the access log: the caller is gone, and no fault of ours is to be counted."""
    return answer(request.scope, 499, "the caller left before the body was there")


async def _broken(request: Request, error: Exception) -> Response:
    """Sent before `Guard` logs the fault."""
    return answer(request.scope, 500, "internal error")
