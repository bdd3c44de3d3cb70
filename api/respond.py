"""The answers' envelopes (contract, 2.2): R for datasets, documents and chunks, J for the rest; JSON written by orjson."""

from collections.abc import Mapping
from email.utils import formatdate
from enum import Enum
from typing import Any, Final, Literal

import orjson
from quart import Response

JSON_TYPE = "application/json"
EXPOSED = "X-Request-Id, Content-Disposition, Retry-After, Retry-After-Ms"  # the headers that a page in a browser may read


class Missing(Enum):
    """A value that was not given; None is a value."""

    MISSING = 0


MISSING: Final = Missing.MISSING


def json_response(payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`payload` as a JSON response; NaN becomes null, non-ASCII stays."""
    return Response(orjson.dumps(payload), status, None if headers is None else dict(headers), content_type=JSON_TYPE)


def reply(data: Any | Literal[Missing.MISSING] = MISSING, **beside: Any) -> Response:
    """A success in envelope R: `{"code":0}`, with `data` when there is any and the keys that stand `beside` it."""
    return json_response({"code": 0} | ({} if data is MISSING else {"data": data}) | beside)


def success(data: Any = None, message: str = "success") -> Response:
    """A success in envelope J: `{"code":0,"data":…,"message":"success"}`."""
    return json_response({"code": 0, "data": data, "message": message})


def http_date(milliseconds: int | None) -> str | None:
    """`"Mon, 28 Apr 2025 18:40:41 GMT"` for milliseconds since the epoch; None stays None."""
    return None if milliseconds is None else formatdate(milliseconds / 1000, usegmt=True)


def times(create_time: int, update_time: int) -> dict[str, Any]:
    """The four time fields of a row."""
    return {
        "create_time": create_time,
        "create_date": http_date(create_time),
        "update_time": update_time,
        "update_date": http_date(update_time),
    }
