"""Whether this database may be written, while `millrace migrate` moves data away from it, or to it.

One row says so. Every transaction that writes holds that row shared, so whoever changes it waits for those under way, and those
that come later see the change: nothing is written, and acknowledged, between the copy and the switch.

    open      as ever
    held      the data is being copied to other parts: reads only
    moved     it was copied, the other database is the right one: reads only, for ever
    filling   this is the other database, and not complete yet: neither reads nor writes
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from peewee import fn

from db.dialect import shared_now_ms
from db.models import ALL, Dataset, Document, Move, Task, Tenant, proxy
from rag.errors import Unavailable, WritesHeld

RETRY_SECONDS = 10.0
_SHARED = {"sqlite": "", "postgresql": " FOR SHARE", "mysql": " LOCK IN SHARE MODE"}


@dataclass(frozen=True, slots=True)
class MoveState:
    """The row. `retired` are places (`api.migrate.places`) that data was moved away from while this database stayed."""

    state: str
    move_id: str
    detail: Mapping[str, Any]
    retired: Sequence[str]


def check_writable(places: Collection[str]) -> None:
    """Hold the row until the transaction ends. Raises `WritesHeld` where a process with its data at `places` must not write."""
    # not by way of the model: this precedes everything that is written
    state, retired, detail = proxy.obj.execute_sql(
        f"SELECT state, retired, detail FROM data_move WHERE id = 1{_SHARED[proxy.obj.kind]}"  # noqa: S608 - one of our own constants
    ).fetchone()
    if state == "open" and (retired == "[]" or not set(orjson.loads(retired)).intersection(places)):
        return
    raise WritesHeld(_reason(state, orjson.loads(detail)), RETRY_SECONDS)


def check_complete(places: Collection[str]) -> None:
    """Raises `Unavailable` where the data at `places` is still on its way there: a search would miss what has not come."""
    row = state()
    if row.state == "filling" or (row.state == "held" and set(row.detail.get("to", ())).intersection(places)):
        raise Unavailable("the data is still being moved to these parts: start with these settings when millrace migrate says so")


def state() -> MoveState:
    """The row as it is."""
    row = Move.get_by_id(1)
    return MoveState(row.state, row.move_id, row.detail, row.retired)


def put(state: str, move_id: str = "", detail: Mapping[str, Any] | None = None, retired: Sequence[str] | None = None) -> None:
    """Change the row, once the transactions under way have ended; `detail` and `retired` None stay as they are."""
    changes: dict[Any, Any] = {Move.state: state, Move.move_id: move_id}
    if detail is not None:
        changes[Move.detail] = dict(detail)
    if retired is not None:
        changes[Move.retired] = list(retired)
    if proxy.obj.kind == "postgresql":  # whose row locks let new sharers pass one that waits alone, for ever where there are many
        proxy.obj.execute_sql("LOCK TABLE data_move IN EXCLUSIVE MODE")
    Move.update(changes).where(Move.id == 1).execute()


def leased_until_ms() -> int:
    """When the last lease of a worker ends or ended; 0 without one. By the database's clock."""
    return int(Task.select(fn.MAX(Task.lease_until)).scalar() or 0)


def clock_ms() -> int:
    """Now, by the database's clock."""
    return shared_now_ms()


def chunk_count() -> int:
    """How many chunks the documents count."""
    return int(Dataset.select(fn.SUM(Dataset.chunk_count)).scalar() or 0)


def document_count() -> int:
    """How many documents have a file."""
    return Document.select().where(Document.location != "").count()


def tenants_after(tenant_id: str, count: int) -> list[str]:
    """The next tenants by id."""
    return [row_id for (row_id,) in Tenant.select(Tenant.id).where(Tenant.id > tenant_id).order_by(Tenant.id).limit(count).tuples()]


def embedding_models() -> list[str]:
    """The models that datasets were embedded with."""
    return [name for (name,) in Dataset.select(Dataset.embedding_model).distinct().order_by(Dataset.embedding_model).tuples()]


def is_empty() -> bool:
    """Whether no table has a row."""
    return not any(model.select().limit(1).exists() for model in ALL)


def _reason(state: str, detail: Mapping[str, Any]) -> str:
    where = ", ".join(detail.get("kinds", ())) or "other parts"
    if state == "held":
        return f"the data is being moved to {where}: until that is done it can be read, and not changed"
    if state == "filling":
        return "the data is still being moved here"
    return f"the data was moved to {where}: start this server with the settings that name them; here nothing is changed any more"
