"""Request bodies and query strings to values: the strict and the tolerant reading of the contract (2.4), and paging (2.5)."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from quart import request

from api.context import parts
from api.decode import form_fields, json_object, json_value, query_fields
from api.errors import ApiError
from api.pace import paced
from api.schema.base import CONTROL, SHOWN_IDS
from rag.errors import TooLarge

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

SHOWN_CHARACTERS = 128
SHOWN_ERRORS = 50
PAGE_SIZE_LIMIT = 100
IDS_LIMIT = 100
WHOLE_LIMIT = 1 << 31  # a whole number beyond it asks for nothing else than this one, and fits wherever it goes
FORM_BYTES = 256 << 10  # decoding a form is slow: 30 times as slow as JSON
LARGE_BYTES = 256 << 10  # a larger body is read on a thread
MODEL_TYPES = {"model_type", "model_attributes_type", "dataclass_type"}


def request_body() -> AsyncIterator[bytes]:
    """The request's body in pieces, as they come. Raises `ApiError` (101/408) where they come too slowly."""
    settings = parts().settings
    return paced(request.body, settings.request_timeout_seconds, settings.min_body_bytes_per_second)


async def read_bytes(limit: int) -> bytes:
    """The whole body. Raises `TooLarge` before a byte is read when its announced length is over the limit, else as soon as it is."""
    if (request.content_length or 0) > limit:
        raise TooLarge(f"the request body exceeds {limit} bytes")
    pieces, size = [], 0
    async for piece in request_body():
        size += len(piece)
        if size > limit:
            raise TooLarge(f"the request body exceeds {limit} bytes")
        pieces.append(piece)
    return b"".join(pieces)


async def tolerant() -> dict[str, Any]:
    """The body as an object: JSON, or form fields; `{}` when there is none. Raises `ApiError` (101), `TooLarge`."""
    if request.mimetype == "application/x-www-form-urlencoded":
        return query_fields(await read_bytes(FORM_BYTES))
    if request.mimetype == "multipart/form-data":
        return form_fields(await read_bytes(FORM_BYTES), request.mimetype_params.get("boundary", ""))
    return await _in_time(json_object, await read_bytes(parts().settings.max_body_bytes))


async def strict(model: type[M], context: Mapping[str, Any] | None = None) -> M:
    """The JSON body, validated. Raises `ApiError` (101) in the contract's order: media type, syntax, object, fields.

    `context` is what the model's validators want to know.
    """
    if request.mimetype != "application/json":
        raise ApiError(101, f"Unsupported content type: Expected application/json, got {request.content_type or None}", 415)
    raw = await read_bytes(parts().settings.max_body_bytes)
    return await _in_time(partial(_strict, model, context), raw)


def strict_query(model: type[M], beside: Mapping[str, Any], drop: tuple[str, ...] = ()) -> M:
    """The query string but for the parameters to `drop`, with those read `beside`, validated. Raises `ApiError` (101)."""
    return validated(model, {name: value for name, value in request.args.items() if name not in drop} | dict(beside))


def validated(model: type[M], value: Any, code: int = 101, context: Mapping[str, Any] | None = None) -> M:
    """`model` made from `value`. Raises `ApiError` with a `Field: …` line for each of the first 50 errors."""
    try:
        return model.model_validate(value, context=context)
    except ValidationError as error:
        lines = [field_line(item) for item in error.errors(include_url=False)[:SHOWN_ERRORS]]
        if error.error_count() > SHOWN_ERRORS:
            lines.append(f"and {error.error_count() - SHOWN_ERRORS} more errors")
        raise ApiError(code, "\n".join(lines)) from None


def field_line(item: Mapping[str, Any]) -> str:
    """`Field: <path> - Message: <text> - Value: <input>` for one error of pydantic's."""
    message = "Input should be a valid dictionary" if item["type"] in MODEL_TYPES else item["msg"]
    return field_error(".".join(str(part) for part in item["loc"]), message, item["input"])


def field_error(path: str, message: str, value: Any) -> str:
    """The same from its parts; a long value is cut to 128 characters and `...`."""
    shown = _beginning(value)
    if len(shown) > SHOWN_CHARACTERS:
        shown = shown[:SHOWN_CHARACTERS] + "..."
    return f"Field: <{path}> - Message: <{message}> - Value: <{shown}>"


def shown_ids(ids: Sequence[str]) -> str:
    """The first 100 of the ids, joined by commas, and how many more there are."""
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return ", ".join(ids[:SHOWN_IDS]) + more


def require(body: Mapping[str, Any], *keys: str) -> None:
    """Raises `ApiError` (101) naming the keys that are absent."""
    absent = [key for key in keys if key not in body]
    if absent:
        raise ApiError(101, f"required argument are missing: {','.join(absent)}; ")


def check_name(name: str, field: str = "name") -> str:
    """The name. Raises `ApiError` (101) where it has control characters, which no list could show."""
    if CONTROL.search(name):
        raise ApiError(101, f"`{field}` must not contain control characters")
    return name


def page_of(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """`page` and `page_size`: what is not a positive number becomes 1 and 30. Raises `ApiError` (101) above 100."""
    page_size = _positive(arguments.get("page_size"), 30)
    if page_size > PAGE_SIZE_LIMIT:
        raise ApiError(101, f"page_size must be less than or equal to {PAGE_SIZE_LIMIT}")
    return _positive(arguments.get("page"), 1), page_size


def order_of(arguments: Mapping[str, str], fields: tuple[str, ...] = ("create_time", "update_time", "name")) -> tuple[str, bool]:
    """`orderby` and `desc`. Raises `ApiError` (101) for a field that lists are not ordered by."""
    orderby = arguments.get("orderby") or fields[0]
    if orderby not in fields:
        raise ApiError(101, f"invalid orderby field: {orderby}")
    return orderby, str(arguments.get("desc", "true")).strip().lower() != "false"


def id_list(name: str, *, commas: bool = False) -> list[str]:
    """A repeatable query parameter without its empty values. Raises `ApiError` (101) for more than 100."""
    values = request.args.getlist(name)
    if commas:
        values = [value for joined in values for value in joined.split(",")]
    ids = [value.strip() for value in values if value.strip()]
    if len(ids) > IDS_LIMIT:
        raise ApiError(101, f"{name} must contain at most {IDS_LIMIT} IDs")
    return ids


def number(body: Mapping[str, Any], name: str, default: float) -> float:
    """A finite number under that key, or the default where it is absent or null. Numeric text counts. Raises `ApiError` (101)."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        try:
            parsed = float(value)
        except (TypeError, ValueError):
            parsed = float("nan")
        if abs(parsed) < float("inf"):
            return parsed
    raise ApiError(101, f"`{name}` should be a number")


def integer(body: Mapping[str, Any], name: str, default: int) -> int:
    """The same for whole numbers; one beyond `WHOLE_LIMIT` becomes that."""
    value = number(body, name, default)
    if value != int(value):
        raise ApiError(101, f"`{name}` should be an integer")
    return max(-WHOLE_LIMIT, min(int(value), WHOLE_LIMIT))


def _positive(value: Any, default: int) -> int:
    try:
        parsed = int(value)
    except (TypeError, ValueError):
        return default
    # a page beyond any list is an empty page; a number the database cannot hold is one, too
    return min(parsed, WHOLE_LIMIT) if parsed > 0 else default


async def _in_time(read: Callable[[bytes], T], raw: bytes) -> T:
    """`read(raw)`; a large body is read on a thread, so that the others need not wait for it."""
    return await parts().lanes.search.run(read, raw) if len(raw) > LARGE_BYTES else read(raw)


def _strict(model: type[M], context: Mapping[str, Any] | None, raw: bytes) -> M:
    value = json_value(raw)
    if value and not isinstance(value, dict):
        raise ApiError(101, f"Invalid request payload: expected object, got {type(value).__name__}")
    return validated(model, value or {}, context=context)


def _beginning(value: Any) -> str:
    """`str(value)`, or its first characters, at least one more than are shown: a body's text is not to be written out for those."""
    if isinstance(value, str):
        return value[: SHOWN_CHARACTERS + 1]
    if not isinstance(value, (dict, list)):
        return str(value)
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > SHOWN_CHARACTERS:
            break
    return text


def _pieces(value: Any) -> Iterator[str]:
    """`repr(value)` piece by piece, texts cut short."""
    if isinstance(value, (dict, list)):
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        yield opening
        for place, entry in enumerate(value):
            yield ", " if place else ""
            yield from _pieces(entry)
            if isinstance(value, dict):
                yield ": "
                yield from _pieces(value[entry])
        yield closing
    else:
        yield repr(value[: SHOWN_CHARACTERS + 1] if isinstance(value, str) else value)
