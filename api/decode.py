"""From a body's bytes to values, within limits: JSON, and both kinds of form."""

from typing import Any
from urllib.parse import parse_qs

import orjson
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, MultipartDecoder, NeedData

from api.errors import MALFORMED_JSON, ApiError

# What a body may hold. A parser keeps the interpreter to itself while it makes these, and every check after it costs by their number.
VALUES_LIMIT = 100_000
LIST_LIMIT = 10_000
KEYS_LIMIT = 1_000
FIELDS_LIMIT = 1_000
_NO_STRUCTURE = bytes(set(range(256)) - set(b'",[{'))


def json_object(raw: bytes) -> dict[str, Any]:
    """The object; `{}` for nothing or null. Raises `ApiError` (101)."""
    value = json_value(raw) if raw.strip() else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError(101, "JSON payload must be an object.")
    return value


def json_value(raw: bytes) -> Any:
    """The value. Raises `ApiError` (101) for what is not JSON, or holds too much."""
    if _values_in(raw) > VALUES_LIMIT:
        raise ApiError(101, f"the request body holds more than {VALUES_LIMIT} values")
    try:
        value = orjson.loads(raw)
    except ValueError:
        raise ApiError(101, MALFORMED_JSON) from None
    _check_sizes(value)
    return value


def query_fields(raw: bytes) -> dict[str, Any]:
    """A form as in a query string: of a field that is there twice the last value. Raises `ApiError` (101)."""
    try:
        fields = parse_qs(raw.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=FIELDS_LIMIT)
    except ValueError:
        raise ApiError(101, f"the form must contain at most {FIELDS_LIMIT} fields") from None
    return {key: values[-1] for key, values in fields.items()}


def form_fields(raw: bytes, boundary: str) -> dict[str, Any]:
    """A multipart form without its files. Raises `ApiError` (101)."""
    if not raw.strip():
        return {}
    decoder = MultipartDecoder(boundary.encode("latin-1", "replace"), max_parts=FIELDS_LIMIT)
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
    except RequestEntityTooLarge:
        raise ApiError(101, f"the form must contain at most {FIELDS_LIMIT} fields") from None
    except ValueError:
        raise ApiError(101, "the multipart body is malformed") from None
    return {name: value.decode("utf-8", "replace") for name, value in fields.items()}


def _values_in(raw: bytes) -> int:
    """About how many values JSON text holds: its commas and opening brackets outside of strings. Makes none of them."""
    structure = raw.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_STRUCTURE)
    strings = structure.count(b'"') // 2
    # keys are strings, too: with over twice the limit the values are over it
    return strings if strings > 2 * VALUES_LIMIT else sum(map(len, structure.split(b'"')[::2]))


def _check_sizes(value: Any) -> None:
    """Raises `ApiError` (101) naming a list or an object, at any depth, that has too many entries."""
    pending = [("the request body", value)]
    while pending:
        name, item = pending.pop()
        if isinstance(item, dict):
            if len(item) > KEYS_LIMIT:
                raise ApiError(101, f"{name} must contain at most {KEYS_LIMIT} keys")
            pending += [(f"`{key:.64}`", entry) for key, entry in item.items() if isinstance(entry, (dict, list))]
        elif isinstance(item, list):
            if len(item) > LIST_LIMIT:
                raise ApiError(101, f"{name} must contain at most {LIST_LIMIT} entries")
            pending += [(name, entry) for entry in item if isinstance(entry, (dict, list))]
