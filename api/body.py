"""Request bodies and query strings to values: the strict and the tolerant reading of the contract (2.4), and paging (2.5)."""

from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qs

import orjson
from pydantic import BaseModel, ValidationError
from quart import request
from werkzeug.sansio.multipart import Data, Epilogue, Field, MultipartDecoder, NeedData

from api.context import parts
from api.errors import MALFORMED_JSON, ApiError
from rag.errors import TooLarge

M = TypeVar("M", bound=BaseModel)

SHOWN_CHARACTERS = 128
PAGE_SIZE_LIMIT = 100
IDS_LIMIT = 100
MODEL_TYPES = {"model_type", "model_attributes_type", "dataclass_type"}


async def read_bytes(limit: int) -> bytes:
    """The whole body. Raises `TooLarge` before a byte is read when its announced length is over the limit, else as soon as it is."""
    if (request.content_length or 0) > limit:
        raise TooLarge(f"the request body exceeds {limit} bytes")
    pieces, size = [], 0
    async for piece in request.body:
        size += len(piece)
        if size > limit:
            raise TooLarge(f"the request body exceeds {limit} bytes")
        pieces.append(piece)
    return b"".join(pieces)


async def tolerant() -> dict[str, Any]:
    """The body as an object: JSON, or form fields; `{}` when there is none. Raises `ApiError` (101)."""
    raw = await read_bytes(parts().settings.max_body_bytes)
    if not raw.strip():
        return {}
    if request.mimetype == "application/x-www-form-urlencoded":
        return {key: values[-1] for key, values in parse_qs(raw.decode("utf-8", "replace"), keep_blank_values=True).items()}
    if request.mimetype == "multipart/form-data":
        return _form_fields(raw, request.mimetype_params.get("boundary", ""))
    value = _json(raw)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError(101, "JSON payload must be an object.")
    return value


async def strict(model: type[M], context: Mapping[str, Any] | None = None) -> M:
    """The JSON body, validated. Raises `ApiError` (101) in the contract's order: media type, syntax, object, fields.

    `context` is what the model's validators want to know.
    """
    if request.mimetype != "application/json":
        raise ApiError(101, f"Unsupported content type: Expected application/json, got {request.content_type or None}", 415)
    raw = await read_bytes(parts().settings.max_body_bytes)
    value = _json(raw)
    if value and not isinstance(value, dict):
        raise ApiError(101, f"Invalid request payload: expected object, got {type(value).__name__}")
    return validated(model, value or {}, context=context)


def strict_query(model: type[M], beside: Mapping[str, Any], drop: tuple[str, ...] = ()) -> M:
    """The query string but for the parameters to `drop`, with those read `beside`, validated. Raises `ApiError` (101)."""
    return validated(model, {name: value for name, value in request.args.items() if name not in drop} | dict(beside))


def validated(model: type[M], value: Any, code: int = 101, context: Mapping[str, Any] | None = None) -> M:
    """`model` made from `value`. Raises `ApiError` with a `Field: …` line for each error."""
    try:
        return model.model_validate(value, context=context)
    except ValidationError as error:
        raise ApiError(code, "\n".join(field_line(item) for item in error.errors(include_url=False))) from None


def field_line(item: Mapping[str, Any]) -> str:
    """`Field: <path> - Message: <text> - Value: <input>` for one error of pydantic's."""
    message = "Input should be a valid dictionary" if item["type"] in MODEL_TYPES else item["msg"]
    return field_error(".".join(str(part) for part in item["loc"]), message, item["input"])


def field_error(path: str, message: str, value: Any) -> str:
    """The same from its parts; a long value is cut to 128 characters and `...`."""
    shown = str(value)
    if len(shown) > SHOWN_CHARACTERS:
        shown = shown[:SHOWN_CHARACTERS] + "..."
    return f"Field: <{path}> - Message: <{message}> - Value: <{shown}>"


def require(body: Mapping[str, Any], *keys: str) -> None:
    """Raises `ApiError` (101) naming the keys that are absent."""
    absent = [key for key in keys if key not in body]
    if absent:
        raise ApiError(101, f"required argument are missing: {','.join(absent)}; ")


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
    """The same for whole numbers."""
    value = number(body, name, default)
    if value != int(value):
        raise ApiError(101, f"`{name}` should be an integer")
    return int(value)


def _positive(value: Any, default: int) -> int:
    try:
        parsed = int(value)
    except (TypeError, ValueError):
        return default
    # a page beyond any list is an empty page; a number the database cannot hold is one, too
    return min(parsed, 1 << 31) if parsed > 0 else default


def _json(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except ValueError:
        raise ApiError(101, MALFORMED_JSON) from None


def _form_fields(raw: bytes, boundary: str) -> dict[str, Any]:
    decoder = MultipartDecoder(boundary.encode("latin-1"))
    fields: dict[str, bytearray] = {}
    current: bytearray | None = None
    try:
        decoder.receive_data(raw)
        decoder.receive_data(None)
        event = decoder.next_event()
        while not isinstance(event, (Epilogue, NeedData)):
            if isinstance(event, Field):
                current = fields[event.name] = bytearray()
            elif isinstance(event, Data) and current is not None:
                current += event.data
            elif not isinstance(event, Data):
                current = None
            event = decoder.next_event()
    except ValueError:
        raise ApiError(101, "the multipart body is malformed") from None
    return {name: value.decode("utf-8", "replace") for name, value in fields.items()}
