"""Bulk requests: in bounded pieces, with patience where the cluster asks for it, and an answer for each item."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from rag.deadline import seconds_left
from rag.errors import Unavailable
from rag.store.elastic import FULL_DISK, NO_INDEX, Cluster, error_type, failure

PIECE_BYTES = 5 << 20  # Elasticsearch takes 100 MB at once, and is quicker with less
PIECE_ITEMS = 1000
_BUSY = (429, 503)
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 3.0
_PATIENCE_SECONDS = 60.0  # where no deadline says otherwise
_SHOWN = "errors,items.*.status,items.*.error.type"


class FieldMissing(Exception):
    """The index lacks a field that a document brings, or is not there: it was dropped and perhaps made anew."""


@dataclass(frozen=True, slots=True)
class Item:
    """One document to write or to delete. With `seen` (sequence number and term) only while it is what was read.

    `document` None deletes. `create` refuses when there is one already.
    """

    id: str
    document: bytes | None = None
    seen: tuple[int, int] | None = None
    create: bool = False

    def lines(self) -> list[bytes]:
        """The item as a bulk request holds it."""
        action: dict[str, Any] = {"_id": self.id}
        if self.seen is not None:
            action |= {"if_seq_no": self.seen[0], "if_primary_term": self.seen[1]}
        verb = "delete" if self.document is None else "create" if self.create else "index"
        return [orjson.dumps({verb: action})] + ([] if self.document is None else [self.document])


def write(
    cluster: Cluster, index: str, items: Sequence[Item], *, refresh: bool = False, alias: bool = True,
    pause: Callable[[float], None] = time.sleep,
) -> list[bool]:  # fmt: skip
    """Write the items; for each whether it was done: False for a conflict with `seen` or `create`, or a deleted one that was gone.

    With `refresh` all can be found when this returns. Items that a busy cluster refuses are sent again, until the caller's
    deadline. Raises `Unavailable` when one cannot be written (others may have been), `FieldMissing` when the index has changed.
    """
    outcomes: list[bool] = []
    pieces = list(_pieces(items))
    for number, piece in enumerate(pieces):
        outcomes += _write_piece(cluster, index, piece, refresh=refresh and number == len(pieces) - 1 == 0, alias=alias, pause=pause)
    if refresh and len(pieces) > 1:
        cluster.ask("POST", f"/{index}/_refresh")
    return outcomes


def _pieces(items: Iterable[Item]) -> Iterable[list[tuple[Item, bytes]]]:
    piece: list[tuple[Item, bytes]] = []
    size = 0
    for item in items:
        lines = b"\n".join(item.lines()) + b"\n"
        if piece and (len(piece) >= PIECE_ITEMS or size + len(lines) > PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append((item, lines))
        size += len(lines)
    if piece:
        yield piece


def _write_piece(
    cluster: Cluster, index: str, piece: list[tuple[Item, bytes]], *, refresh: bool, alias: bool, pause: Callable[[float], None]
) -> list[bool]:  # fmt: skip
    outcomes = [False] * len(piece)
    waiting = list(range(len(piece)))
    # A conditional write that was done and whose answer was lost would be taken for a conflict when it is sent again.
    repeatable = all(item.seen is None and not item.create for item, _ in piece)
    params = {"filter_path": _SHOWN, "require_alias": str(alias).lower()} | ({"refresh": "true"} if refresh else {})
    give_up = time.monotonic() + min(_PATIENCE_SECONDS, seconds_left())
    seconds = _FIRST_PAUSE_SECONDS
    while True:
        body = b"".join(piece[place][1] for place in waiting)
        reply = cluster.ask("POST", f"/{index}/_bulk", body, params=params, lines=True, expected=(429,), repeatable=repeatable)
        busy, status, kind = list(waiting), reply.status, reply.error
        if reply.status != 429:
            busy = []
            for place, result in zip(waiting, reply.body["items"], strict=True):
                (answer,) = result.values()
                status_of_item, kind_of_item = answer["status"], error_type(answer.get("error"))
                if status_of_item in _BUSY:
                    busy.append(place)
                    status, kind = status_of_item, kind_of_item
                else:
                    outcomes[place] = _done(status_of_item, kind_of_item, conditional=not repeatable)
        if not busy:
            return outcomes
        # a full disk is told as "too many requests" as well, and does not pass by itself
        if kind == FULL_DISK or time.monotonic() + seconds > give_up:
            raise failure(status, kind)
        pause(seconds)
        waiting, seconds = busy, min(2 * seconds, _LONGEST_PAUSE_SECONDS)


def _done(status: int, kind: str, *, conditional: bool) -> bool:
    if 200 <= status < 300:
        return True
    if kind in (NO_INDEX, "strict_dynamic_mapping_exception"):
        raise FieldMissing
    if status == 404 or (status == 409 and conditional):
        return False
    if status == 400:
        raise Unavailable(f"elasticsearch refused a chunk ({kind})")
    raise failure(status, kind)
