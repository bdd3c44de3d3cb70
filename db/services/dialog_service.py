"""Chat assistants ("chats" on the wire): rows of `Dialog`, deleted softly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peewee import IntegrityError, ModelSelect, Value

from db.dialect import among, has_part, locked
from db.models import Dialog, Tenant, name_key, now_ms, proxy
from db.records import freeze, only, page_of
from db.services import dataset_service
from db.services.dataset_service import DatasetBrief
from rag.errors import Conflict, NotFound

COLUMNS = (
    "name", "description", "icon", "language", "llm_id", "llm_setting", "prompt_type", "prompt_config", "meta_data_filter",
    "similarity_threshold", "vector_similarity_weight", "top_n", "top_k", "do_refer", "rerank_id", "dataset_ids",
)  # fmt: skip
"""What a caller may set; `create` and `update` take these names only."""

# Every answer begins with it: to make the statement with peewee takes four times as long as all the rest.
_ONE = "SELECT * FROM dialog WHERE tenant_id = ? AND id = ? AND deleted = FALSE"
_ALIVE = Dialog.deleted == Value(False)  # not `~`: MySQL and SQLite use the index for comparisons only


@dataclass(frozen=True, slots=True)
class DialogRecord:
    """A chat assistant. `llm_id` "" means the default chat model; `datasets` are those of its datasets that still exist."""

    id: str
    tenant_id: str
    name: str
    description: str
    icon: str
    language: str
    llm_id: str
    llm_setting: Mapping[str, Any]
    prompt_type: str
    prompt_config: Mapping[str, Any]
    meta_data_filter: Mapping[str, Any]
    similarity_threshold: float
    vector_similarity_weight: float
    top_n: int
    top_k: int
    do_refer: str
    rerank_id: str
    datasets: tuple[DatasetBrief, ...]
    create_time: int
    update_time: int


def create(tenant_id: str, values: Mapping[str, Any]) -> DialogRecord:
    """A new chat. Raises `Conflict` when the tenant has a chat of that name."""
    try:
        row = Dialog.create(tenant_id=tenant_id, name_key=name_key(values["name"]), **_columns(values))
    except IntegrityError as exc:
        raise Conflict("the chat's name is taken") from exc
    return _records(tenant_id, [row])[0]


def get(tenant_id: str, dialog_id: str) -> DialogRecord:
    """The chat. Raises `NotFound`."""
    row = only(Dialog.raw(_ONE.replace("?", proxy.obj.param), tenant_id, dialog_id))
    if row is None:
        raise NotFound("no such chat")
    return _records(tenant_id, [row])[0]


def find(tenant_id: str, id_or_name: str) -> DialogRecord | None:
    """The chat with that id, or else with that name (case does not matter), or None."""
    rows = list(_alive(tenant_id).where((Dialog.id == id_or_name) | (Dialog.name_key == name_key(id_or_name))))
    rows.sort(key=lambda row: row.id != id_or_name)
    return _records(tenant_id, rows[:1])[0] if rows else None


def listing(
    tenant_id: str, *, dialog_id: str = "", name: str = "", keywords: str = "", orderby: str = "create_time", desc: bool = True,
    page: int = 1, page_size: int = 30,
) -> tuple[int, list[DialogRecord]]:  # fmt: skip
    """How many chats match, and one page of them; ties by id. `keywords` is part of the name and ignored with an id or a name."""
    query = _alive(tenant_id)
    if dialog_id:
        query = query.where(Dialog.id == dialog_id)
    if name:
        query = query.where(Dialog.name_key == name_key(name))
    if keywords and not (dialog_id or name):
        query = query.where(has_part(Dialog.name_key, name_key(keywords)))
    column = getattr(Dialog, orderby)
    order = (column.desc(), Dialog.id.desc()) if desc else (column.asc(), Dialog.id.asc())
    return query.count(), _records(tenant_id, page_of(query.order_by(*order), page, page_size))


def update(tenant_id: str, dialog_id: str, values: Mapping[str, Any]) -> DialogRecord:
    """The chat with the given columns replaced. Raises `NotFound`, and `Conflict` when another chat has the name."""
    changes = _columns(values)
    if "name" in changes:
        changes["name_key"] = name_key(changes["name"])
    mine = (Dialog.tenant_id == tenant_id) & (Dialog.id == dialog_id) & _ALIVE
    try:
        Dialog.update(update_time=now_ms(), **changes).where(mine).execute()
    except IntegrityError as exc:
        raise Conflict("the chat's name is taken") from exc
    return get(tenant_id, dialog_id)


def delete(tenant_id: str, dialog_ids: Sequence[str] | None) -> set[str]:
    """Delete the chats (None: all of the tenant) and return the ids of those that existed."""
    query = _alive(tenant_id)
    if dialog_ids is not None:
        query = query.where(among(Dialog.id, dialog_ids))
    ids = {row.id for row in locked(query.select(Dialog.id).order_by(Dialog.id))}
    # a deleted chat gives its name free: NULLs do not collide
    Dialog.update(deleted=True, name_key=None, update_time=now_ms()).where(among(Dialog.id, ids)).execute()
    return ids


def owner_name(tenant_id: str) -> str:
    """The tenant's name, shown as nickname in lists."""
    row = Tenant.get_or_none(Tenant.id == tenant_id)
    return row.name if row else ""


def _alive(tenant_id: str) -> ModelSelect:
    return Dialog.select().where(Dialog.tenant_id == tenant_id, _ALIVE)


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in COLUMNS}


def _records(tenant_id: str, rows: Sequence[Dialog]) -> list[DialogRecord]:
    found = dataset_service.briefs(tenant_id, sorted({dataset_id for row in rows for dataset_id in row.dataset_ids}))
    return [
        freeze(DialogRecord, row, datasets=tuple(found[dataset_id] for dataset_id in row.dataset_ids if dataset_id in found))
        for row in rows
    ]
