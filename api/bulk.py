"""Bulk deletes of the tolerant routes: `ids`, or `delete_all`; duplicates and unknown ids are reported beside what was done."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field
from quart import Response

from api.errors import ApiError
from api.respond import success
from api.schema.base import SHOWN_IDS


class BulkDelete(BaseModel):
    """What to delete."""

    ids: list[str] | None = Field(None, description="their ids; empty means none, never all")
    delete_all: bool = Field(False, description="all of them; only where no ids are given")


@dataclass(frozen=True, slots=True)
class Bulk:
    """`ids` as sent, in order, with repeats; None for all."""

    ids: list[str] | None

    @property
    def keys(self) -> list[str] | None:
        """The ids as they are stored; None for all."""
        return None if self.ids is None else list(dict.fromkeys(map(_key, self.ids)))


def read_bulk(body: Mapping[str, Any]) -> Bulk | None:
    """What a bulk delete asks for; None when it asks for nothing. Raises `ApiError` (101)."""
    ids = body.get("ids")
    if ids is not None and not isinstance(ids, list):
        raise ApiError(101, "`ids` should be a list")
    if ids:
        return Bulk([str(value) for value in ids])
    return Bulk(None) if body.get("delete_all") is True else None


def bulk_reply(bulk: Bulk, deleted: Collection[str], noun: str, unknown: str, duplicate: str, whole: Any) -> Response:
    """The answer: `whole` when all went well; what failed beside the count; 102/404 when nothing was deleted.

    `unknown` and `duplicate` are the lines for an id, with `{id}` in its place.
    """
    ids = bulk.ids or []
    counts = Counter(ids)
    once = list(counts)
    errors = [unknown.format(id=value) for value in once if _key(value) not in deleted]
    errors += [duplicate.format(id=value) for value in once if counts[value] > 1]
    if not errors:
        return success(whole)
    if not deleted:
        raise ApiError(102, "; ".join(errors[:SHOWN_IDS]), 404)
    count = len(deleted)
    return success({"success_count": count, "errors": errors}, f"Partially deleted {count} {noun} with {len(errors)} errors")


def _key(value: str) -> str:
    return value.replace("-", "")
