"""What the endpoint accepts and answers: strict, bounded models.

A request is read from the bytes of its body by pydantic's own JSON reader, in strict mode: no
number is read from a string, no flag from a number, NaN and infinity are refused.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from models.data.schema import AMOUNT_SCALE, FIRST_YEAR, MAX_ABS_AMOUNT
from ray_jobs.config import Config, Profile

MAX_BODY = 2**20  # bytes
MAX_EVENTS = 2_000
MAX_TEXT = 2_000  # characters
MAX_NAME = 128  # characters of an id or a category
MAX_LEVEL = 64  # characters of a category of a profile column
MAX_COLUMNS = 256  # profile columns in a request
MAX_FAULTS = 20  # faults named in an answer
AHEAD = timedelta(days=1)  # how far a caller's clock may run ahead
EARLIEST = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC)

_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
    r"([Zz]|[+-][0-9]{2}:?[0-9]{2})"
)
_DECIMAL = re.compile(r"-?[0-9]{1,32}(\.[0-9]{1,32})?")


def _time(value: object) -> datetime:
    """A time with an offset, from 1990 to a day from now."""
    if isinstance(value, str):
        if not _TIME.fullmatch(value):
            raise ValueError("expected a time with its offset, such as 2024-05-01T09:30:00+02:00")
        value = datetime.fromisoformat(value.upper())
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("expected a time with its offset, such as 2024-05-01T09:30:00+02:00")
    if value < EARLIEST:
        raise ValueError(f"before {FIRST_YEAR}")
    if value > datetime.now(UTC) + AHEAD:
        raise ValueError("more than a day in the future")
    return value


def _amount(value: object) -> Decimal:
    """An amount as a JSON number or a decimal string."""
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        raise ValueError('expected a number, or a decimal string such as "12.50"')
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError('expected a number, or a decimal string such as "12.50"')
    amount = Decimal(str(value))
    if not amount.is_finite():
        raise ValueError("expected a finite number")
    if abs(amount) > MAX_ABS_AMOUNT:
        raise ValueError(f"expected -{MAX_ABS_AMOUNT} to {MAX_ABS_AMOUNT}")
    if amount != round(amount, AMOUNT_SCALE):
        raise ValueError(f"expected at most {AMOUNT_SCALE} decimals")
    return round(amount, AMOUNT_SCALE)  # zeros behind it would be digits too many for a column


def _event_id(value: object) -> int | str:
    """A text of 1 to 128 characters, or a whole number of 64 bits."""
    if isinstance(value, str) and 0 < len(value.strip()) <= MAX_NAME:
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise ValueError(f"expected 1 to {MAX_NAME} characters, or a whole number of 64 bits")


def _held(value: object) -> float | str | None:
    """What a profile column holds: a finite number, a text, or nothing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a number or a text")
    if not abs(value) <= sys.float_info.max:  # NaN as well
        raise ValueError("expected a finite number")
    return float(value)


Time = Annotated[datetime, PlainValidator(_time)]
Amount = Annotated[Decimal, PlainValidator(_amount)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_NAME)]
EventId = Annotated[int | str, PlainValidator(_event_id)]
Held = Annotated[float | str | None, PlainValidator(_held)]


class Message(BaseModel):
    """The base of what goes over the wire."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class EventSource:
    """An events source of the configuration: its time zone, and how long after an event it is known
    unless the event says so."""

    timezone: str = "UTC"
    lag: timedelta = timedelta(0)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the configuration fixes of a request: its profile columns, and the events sources."""

    profile: Profile = field(default_factory=Profile)
    sources: Mapping[str, EventSource] = field(default_factory=dict)

    def name_of(self, event: "Event") -> str:
        """The name of an event's source; empty where the configuration has none."""
        return event.source or next(iter(self.sources), "")

    def source_of(self, event: "Event") -> EventSource:
        """The events source that an event comes from."""
        return self.sources.get(self.name_of(event), EventSource())


class Event(Message):
    """Something that the user did.

    `source`: the events source that it comes from, by default the configuration's first; with it
    a text `event_id` becomes the number that ingest gives it. `available_at`: when it became
    known, by default the source's `lag` after it happened, as in ingest. The hour and the weekday
    are those of the source's `timezone`, as in ingest, whatever offset `event_time` is written in.
    """

    event_id: EventId
    source: Name | None = None
    event_time: Time
    available_at: Time | None = None
    event_type: Name
    category: Name | None = None
    counterparty_id: Name | None = None
    amount: Amount | None = None
    text: Annotated[str, Field(max_length=MAX_TEXT)] | None = None

    @field_validator("source")
    @classmethod
    def _configured(cls, value: str | None, info: ValidationInfo) -> str | None:
        terms: Terms = info.context or Terms()
        if value is not None and value not in terms.sources:
            raise ValueError(f"no such events source; there is {', '.join(terms.sources)}")
        return value

    @model_validator(mode="after")
    def _known_after_it_happened(self) -> Self:
        if self.available_at is not None and self.available_at < self.event_time:
            raise ValueError("available_at: before event_time")
        return self


class Proposed(Message):
    """The transaction to decide on: an order, a loan asked for."""

    amount: Amount
    category: Name | None = None

    @field_validator("amount")
    @classmethod
    def _positive(cls, value: Decimal) -> Decimal:
        if value <= 0:
            raise ValueError("expected more than 0")
        return value


class ScoreRequest(Message):
    """A user, what is known of them, and as of when to score them (by default now).

    `events` are a set: order and repetition do not matter. `profile` may hold the columns that
    the configuration declares; `Terms` are the context of validation.
    """

    user_id: Name
    as_of: Time = Field(default_factory=lambda: datetime.now(UTC))
    events: Annotated[tuple[Event, ...], Field(max_length=MAX_EVENTS)] = ()
    profile: Annotated[
        dict[Annotated[str, Field(max_length=MAX_NAME)], Held],
        Field(max_length=MAX_COLUMNS),
    ] = Field(default_factory=dict)
    proposed: Proposed | None = None

    @field_validator("profile")
    @classmethod
    def _declared(
        cls, value: dict[str, float | str | None], info: ValidationInfo
    ) -> dict[str, float | str | None]:
        terms: Terms = info.context or Terms()
        declared = terms.profile
        for name, held in value.items():
            if name in declared.numeric:
                if isinstance(held, str):
                    raise ValueError(f"{name}: expected a number")
            elif name in declared.categorical:
                if isinstance(held, float) or len(held or "") > MAX_LEVEL:
                    raise ValueError(f"{name}: expected at most {MAX_LEVEL} characters")
            else:
                known = ", ".join((*declared.numeric, *declared.categorical)) or "none"
                raise ValueError(f"{name}: not a profile column; there is {known}")
        return value


class Probability(Message):
    """A calibrated probability with its interval."""

    probability: float
    low: float
    high: float


class ExpectedAmount(Message):
    """An expected amount with its interval, in the task's currency."""

    amount: float
    low: float
    high: float


class Decision(Message):
    """`limit` is null where spend is not estimated, `review_level` where nothing is reviewed."""

    action: Literal["approve", "review", "decline"]
    review_level: Literal["light", "standard", "deep"] | None
    limit: float | None
    tier: str


class Reason(Message):
    """What raised the estimated risk, with its effect in log odds."""

    code: str
    text: str
    effect: float


class ScoreResponse(Message):
    """The answer. The user's id is not repeated in it."""

    request_id: str
    as_of: datetime
    baseline_date: datetime
    graph_date: datetime
    saturated: bool
    score: float
    grade: str
    estimates: dict[str, Probability | ExpectedAmount]
    decision: Decision
    reasons: list[Reason]
    weights: dict[str, float | None]
    model_sha256: str


class ModelResponse(Message):
    """Which model answers."""

    model_sha256: str
    precision: str
    tasks: dict[str, Literal["binary", "amount"]]


class Fault(Message):
    """What is wrong with a request, and where."""

    field: str
    message: str


class ErrorResponse(Message):
    """Every answer that is not a score."""

    error: str
    request_id: str
    faults: list[Fault] = []


def terms_of(config: Config) -> Terms:
    """What a configuration fixes of a request."""
    sources = {
        name: EventSource(one.timezone, timedelta(0) if "available_at" in one.columns else one.lag)
        for name, one in config.sources.items()
        if one.table == "events"
    }
    return Terms(profile=config.profile, sources=sources)


def parse(body: bytes, terms: Terms) -> ScoreRequest:
    """Read and check a request. Raises pydantic's ValidationError."""
    return ScoreRequest.model_validate_json(body, context=terms)


def details(error: ValidationError) -> Sequence[Mapping[str, Any]]:
    """What pydantic found, without the values that it found it in."""
    return error.errors(include_url=False, include_context=False, include_input=False)


def faults(found: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """The first faults of a refused request: where and why, never the value."""
    return [
        Fault(
            field=".".join(str(part)[:MAX_NAME] for part in one["loc"] or ["body"])[: 4 * MAX_NAME],
            message=one["msg"].removeprefix("Value error, ")[: 4 * MAX_NAME],
        )
        for one in found[:MAX_FAULTS]
    ]


def to_response(scored: Mapping[str, Any], request_id: str) -> ScoreResponse:
    """The answer from one row of `Scorer.score` as a dict."""
    apart = ("weights", "decision")
    estimates: dict[str, Probability | ExpectedAmount] = {}
    for name, value in scored.items():
        if isinstance(value, dict) and name not in apart:
            kind = Probability if "probability" in value else ExpectedAmount
            estimates[name] = kind(**value)
    return ScoreResponse(
        request_id=request_id,
        as_of=scored["as_of"],
        baseline_date=scored["baseline_date"],
        graph_date=scored["graph_date"],
        saturated=scored["saturated"],
        score=scored["score"],
        grade=scored["grade"],
        estimates=estimates,
        decision=Decision(**scored["decision"]),
        reasons=[Reason(**reason) for reason in scored["reasons"]],
        weights=scored["weights"],
        model_sha256=scored["model_sha256"],
    )
