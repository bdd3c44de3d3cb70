"""What request and answer models share, and the value types that several of them use."""

import re
import uuid
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

TEXT_LIMIT = 65_535
SHOWN_IDS = 100  # of a list that a message names
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Strict(BaseModel):
    """A body in which unknown keys and values of a neighbouring type are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Lax(BaseModel):
    """A query string: text is read as what the field needs; unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")


class Tolerant(BaseModel):
    """A body of which unknown keys are ignored; for routes that check values by hand it only documents them."""

    model_config = ConfigDict(extra="ignore")


class Answer(BaseModel):
    """An object of an answer. Tests hold every answer against its model, so unknown keys are an error there."""

    model_config = ConfigDict(extra="forbid")


class Timed(Answer):
    """The times of a row: milliseconds since the epoch, and RFC 1123."""

    create_time: int
    create_date: str
    update_time: int
    update_date: str


def refuse(kind: str, message: str) -> PydanticCustomError:
    """An error with exactly this message."""
    return PydanticCustomError(kind, "{text}", {"text": message})  # type: ignore[arg-type]


def _hex_id(value: Any) -> Any:
    try:
        return uuid.UUID(value).hex
    except (ValueError, AttributeError, TypeError):
        raise refuse("uuid", "Invalid UUID format") from None


def no_repeats(values: list[str] | None) -> list[str] | None:
    """Refuses a list that names something twice."""
    repeated = sorted(value for value, count in Counter(values or ()).items() if count > 1)
    if repeated:
        raise refuse("repeated", f"Duplicate ids: '{', '.join(repeated[:SHOWN_IDS])}'")
    return values


def within_bytes(limit: int) -> AfterValidator:
    """Refuses text whose UTF-8 form is longer than `limit` bytes."""

    def check(value: str) -> str:
        if len(value.encode("utf-8", "surrogatepass")) > limit:
            raise refuse("too_long", f"String should have at most {limit} bytes")
        return value

    return AfterValidator(check)


def _without_control(value: str) -> str:
    """Refuses control characters (category Cc)."""
    if CONTROL.search(value):
        raise refuse("control", "String should not contain control characters")
    return value


def _avatar(value: str | None) -> str | None:
    if not value:
        return value
    prefix, comma, _ = value.partition(",")
    if not comma:
        raise refuse("avatar", "missing MIME prefix. Expected format: data:<mime>;base64,<data>")
    if not prefix.startswith("data:"):
        raise refuse("avatar", "invalid MIME prefix format. Must start with 'data:'")
    if prefix[5:].partition(";")[0] not in ("image/jpeg", "image/png"):
        raise refuse("avatar", "Unsupported MIME type. Allowed: ['image/jpeg', 'image/png']")
    return value


Shown = AfterValidator(_without_control)
HexId = Annotated[str, BeforeValidator(_hex_id)]
IdList = Annotated[list[HexId], AfterValidator(no_repeats)]
Avatar = Annotated[Annotated[str, Field(max_length=TEXT_LIMIT)] | None, AfterValidator(_avatar)]
LongText = Annotated[str, Field(max_length=TEXT_LIMIT)]
ChunkMethod = Literal["naive", "book", "email", "laws", "manual", "one", "paper", "picture", "presentation", "qa", "table", "tag", "resume"]
HEX_ID = re.compile(r"[0-9a-f]{32}")
