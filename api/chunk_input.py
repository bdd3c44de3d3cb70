"""What callers write into a chunk, checked: the bodies of adding and of editing one (contract, 6)."""

import math
import re
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from api import chunk_edits
from api.errors import ApiError
from db.services.document_service import DocumentRecord
from rag.errors import InvalidArgument

CONTENT_CHARACTERS = 131_072  # eight windows of 8,192 tokens; a longer one is a document
LIST_ITEMS = 1_000
ITEM_CHARACTERS = 1_000
SWITCH = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}  # 1 and 0 are True and False
LISTS = {"keywords": "important_keywords", "questions": "questions", "tags": "tag_kwd"}


def fields(document: DocumentRecord, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Chunk` that is added by hand. Raises `ApiError`."""
    content = _content(body)
    result: dict[str, Any] = {"id": chunk_edits.chunk_id(content, document.id), "content": content}
    result |= {name: _texts(body, key, "is required to be a list") for name, key in LISTS.items() if body.get(key) is not None}
    extra = _extra(document, result["id"], body)
    return result | {"extra": extra, "kind": "image" if "image_id" in extra else ""}


def changes(document: DocumentRecord, chunk_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Chunk` that an edit changes; of `extra`, the keys. Raises `ApiError`."""
    result: dict[str, Any] = {}
    if body.get("content") is not None:
        result["content"] = _content(body)
        if document.chunk_method == "qa" and not re.search(r"[\t\n]", result["content"].strip()):
            raise ApiError(102, "Q&A must be separated by TAB/ENTER key.")
    result |= {name: _texts(body, key, "should be a list") for name, key in LISTS.items() if body.get(key) is not None}
    if body.get("positions") is not None:
        result["positions"] = _positions(body["positions"])
    if body.get("available") is not None:
        result["available"] = available(body["available"])
    extra = _extra(document, chunk_id, body)
    return result | {"extra": extra} if extra else result


def _extra(document: DocumentRecord, chunk_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if body.get("tag_feas") is not None:
        extra["tag_feas"] = _tag_features(body["tag_feas"])
    if body.get("image_base64") is not None:
        extra |= _image(document, chunk_id, body["image_base64"])
    return extra


def _content(body: Mapping[str, Any]) -> str:
    content = body.get("content")
    if content is None or (isinstance(content, str) and not content.strip()):
        raise ApiError(102, "`content` is required")
    if not isinstance(content, str):
        raise ApiError(101, "`content` should be a string")
    if len(content) > CONTENT_CHARACTERS:
        raise ApiError(101, f"`content` must have at most {CONTENT_CHARACTERS} characters")
    return content


def _texts(body: Mapping[str, Any], key: str, not_a_list: str) -> tuple[str, ...]:
    values = body[key]
    adding = not_a_list.startswith("is")
    if not isinstance(values, list):
        raise ApiError(102, f"`{key}` {not_a_list}")
    _check_size(key, values)
    if not all(isinstance(value, str) for value in values):
        # an edit answers 101 for keywords and questions, everything else 102
        raise ApiError(102 if adding or key == "tag_kwd" else 101, f"`{key}` must be a list of strings")
    _check_lengths(key, values)
    return tuple(stripped for value in values if (stripped := value.strip())) if key == "questions" else tuple(values)


def _check_size(key: str, values: Sized) -> None:
    if len(values) > LIST_ITEMS:
        raise ApiError(101, f"`{key}` must contain at most {LIST_ITEMS} items")


def _check_lengths(key: str, values: Iterable[str]) -> None:
    if any(len(value) > ITEM_CHARACTERS for value in values):
        raise ApiError(101, f"an item of `{key}` must have at most {ITEM_CHARACTERS} characters")


def _positions(value: Any) -> tuple[tuple[int, int, int, int, int], ...]:
    if not isinstance(value, list):
        raise ApiError(102, "`positions` should be a list")
    _check_size("positions", value)
    rows = [tuple(row) if isinstance(row, list) else () for row in value]
    if not all(len(row) == 5 and all(isinstance(number, int) and not isinstance(number, bool) for number in row) for row in rows):
        raise ApiError(101, "`positions` should be a list of lists of 5 integers")
    return tuple(rows)  # type: ignore[arg-type]


def available(value: Any) -> bool:
    """Whether a switch is on. Raises `ApiError`."""
    switch = SWITCH.get(value) if isinstance(value, (bool, int, str)) else None
    if switch is None:
        raise ApiError(101, "`available` should be true, false, 1 or 0")
    return switch


def _tag_features(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ApiError(102, "`tag_feas` must be an object that maps tags to numbers")
    _check_lengths("tag_feas", value)
    for score in value.values():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise ApiError(102, "`tag_feas` must map tags to finite numbers")
    return value


def _image(document: DocumentRecord, chunk_id: str, encoded: Any) -> dict[str, str]:
    if not isinstance(encoded, str) or not encoded.strip():
        raise ApiError(102, "`image_base64` must be a non-empty string")
    try:
        image = chunk_edits.image_of(document.dataset_id, chunk_id, encoded.strip())
    except InvalidArgument as error:
        raise ApiError(102, "Invalid `image_base64`") from error
    return {"image_id": image.id, "image": image.text}
