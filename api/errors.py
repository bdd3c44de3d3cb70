"""Errors to HTTP: one table from class to status, code and message, and one place that writes the answer.

`ApiError` carries the literal texts of the HTTP contract; everything else that is raised on purpose is looked up in `TABLE`
along its ancestry, and what is left is `100 Internal server error`, logged here, once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
from quart import Response, request
from werkzeug.exceptions import HTTPException

from api.respond import MISSING, Missing, json_response
from rag.errors import (
    Conflict,
    Damaged,
    DatabaseUnavailable,
    DeadlineExceeded,
    InvalidArgument,
    MillraceError,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    ParseFailed,
    PermissionDenied,
    ProviderError,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsupportedType,
)

log = structlog.get_logger("millrace.http")

UNAUTHORIZED = "<Unauthorized '401: Unauthorized'>"
MALFORMED_JSON = "Malformed JSON syntax: Missing commas/brackets or invalid encoding"
STATUS_OF_CODE = {
    101: 400,
    102: 400,
    103: 403,
    108: 403,
    109: 403,
    401: 401,
    403: 403,
    404: 404,
    409: 409,
    429: 429,
    503: 503,
    100: 500,
    500: 500,
}
OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
RETRY_AFTER_SECONDS = 2.0


class ApiError(MillraceError):
    """An answer that the HTTP contract spells out. The status follows from the code unless given; `data` is left out unless given."""

    def __init__(self, code: int, message: str, status: int | None = None, *, data: Any | Literal[Missing.MISSING] = MISSING) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = STATUS_OF_CODE[code] if status is None else status
        self.data = data


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as callers see it, before it takes the form of an envelope."""

    status: int
    code: int
    message: str
    data: Any = MISSING
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """How a class of errors is answered; without `message` the error's own text is shown."""

    status: int
    code: int
    message: str | None = None


TABLE: dict[type[BaseException], Rule] = {
    InvalidArgument: Rule(400, 101),
    TooLarge: Rule(413, 101),
    UnsupportedType: Rule(415, 101),
    Unauthenticated: Rule(401, 401, UNAUTHORIZED),
    PermissionDenied: Rule(403, 108),
    NotFound: Rule(404, 102),
    Conflict: Rule(409, 102),
    Overloaded: Rule(503, 503),
    TooManyRequests: Rule(429, 429),
    Unavailable: Rule(503, 503),
    DatabaseUnavailable: Rule(503, 102, "Database operation failed"),
    OutcomeUnknown: Rule(503, 102, "Database operation failed; whether it was done is not known: look before you repeat it"),
    DeadlineExceeded: Rule(503, 503),
    Damaged: Rule(500, 100),
    ParseFailed: Rule(400, 102),
    ProviderError: Rule(503, 503),
    Exception: Rule(500, 100, "Internal server error"),
}


def failure_of(error: Exception) -> Failure:
    """How `error` is answered. Pure: logs nothing and needs no request, so that streams can use it, too."""
    if isinstance(error, ApiError):
        return Failure(error.status, error.code, error.message, error.data)
    rule = next(TABLE[ancestor] for ancestor in type(error).__mro__ if ancestor in TABLE)
    data = None if rule.status == 401 else MISSING
    headers, milliseconds = {}, None
    if rule.status in (429, 503):
        seconds = getattr(error, "retry_after_seconds", None) or RETRY_AFTER_SECONDS
        milliseconds = math.ceil(seconds * 1000)
        # the standard's whole seconds, and milliseconds as OpenAI's clients read them
        headers = {"Retry-After": str(max(1, math.ceil(seconds))), "Retry-After-Ms": str(milliseconds)}
    return Failure(rule.status, rule.code, str(error) if rule.message is None else rule.message, data, headers, milliseconds)


def is_unexpected(error: Exception) -> bool:
    """Whether nobody raised this on purpose."""
    return not isinstance(error, MillraceError)


def answer(failure: Failure, kind: str) -> Response:
    """The failure in the envelope of a route of that kind."""
    if failure.status == 401 and kind != "OpenAI":
        kind = "J"  # one literal body, whatever the route
    return json_response(ENVELOPES[kind](failure), failure.status, failure.headers)


def _without_data(failure: Failure) -> dict[str, Any]:
    beside = {} if failure.data is MISSING else {"data": failure.data}
    return {"code": failure.code, "message": failure.message} | beside | _patience(failure)


def _with_data(failure: Failure) -> dict[str, Any]:
    data = None if failure.data is MISSING else failure.data
    return {"code": failure.code, "data": data, "message": failure.message} | _patience(failure)


def _patience(failure: Failure) -> dict[str, int]:
    return {} if failure.retry_after_ms is None else {"retry_after_ms": failure.retry_after_ms}


def _openai(failure: Failure) -> dict[str, Any]:
    kind = OPENAI_TYPES.get(failure.status, "invalid_request_error" if failure.status < 500 else "server_error")
    message = "invalid API key" if failure.status == 401 else failure.message
    return {"error": {"message": message, "type": kind, "code": failure.code, "param": None} | _patience(failure)}


ENVELOPES: dict[str, Callable[[Failure], dict[str, Any]]] = {
    "R": _without_data,
    "J": _with_data,
    "D": _without_data,
    "OpenAI": _openai,
}


def http_failure(error: HTTPException, kind: str) -> Response:
    """The answer to what the framework itself refuses: unknown paths, wrong methods, broken requests."""
    if error.code == 404:
        body = {"code": 404, "message": f"Not Found: {request.path}", "data": None, "error": "Not Found"}
        return json_response(body, 404)
    if error.code == 405:
        allowed = getattr(error, "valid_methods", None) or ()
        failure = Failure(405, 100, f"Method Not Allowed: {request.method} {request.path}", None, {"Allow": ", ".join(sorted(allowed))})
        return answer(failure, kind)
    status = error.code if error.code is not None and 400 <= error.code < 500 else 400
    return answer(Failure(status, 101, f"bad request: {error.name.lower()}"), kind)


def error_response(error: Exception, kind: str) -> Response:
    """The answer to any error a handler raised; an unexpected one is logged with its traceback."""
    if isinstance(error, HTTPException):
        return http_failure(error, kind)
    if is_unexpected(error):
        log.error("request failed", route=request.url_rule and request.url_rule.rule, exc_info=error)
    return answer(failure_of(error), kind)
