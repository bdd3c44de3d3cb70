"""The tables. Services use them; nothing else does.

Times are integer milliseconds since the epoch. `name_key` is the name in the form that must be unique (see `name_key()`);
it is NULL for a soft-deleted row, and NULLs do not collide. JSON columns hold text written by `JSONField`.

Texts compare and sort by their code points in every database, whatever its own language is, and blanks at the end count.
"""

import secrets
import threading
import time
import unicodedata
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
import peewee
from peewee import SQL, BigIntegerField, BooleanField, Context, DatabaseProxy, DoubleField, FieldAccessor, IntegerField, Model, NodeList

from rag.errors import InvalidArgument

proxy = DatabaseProxy()


# Of this process alone, like the node of a machine that has no network card (RFC 9562, 6.10): asking the system for each id takes
# seven times as long.
_NODE, _CLOCK_SEQUENCE = secrets.randbits(48) | 1 << 40, secrets.randbits(14)
_making_id = threading.Lock()


def new_id() -> str:
    """32 lower-case hex digits of a version 1 UUID; some clients check the version."""
    with _making_id:  # uuid1 keeps the last time it gave in a variable of the module
        return uuid.uuid1(_NODE, _CLOCK_SEQUENCE).hex


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def new_version() -> int:
    """A number that was never used before and will never be again: a restored backup must not bring an old one back."""
    return secrets.randbits(62)


def name_key(name: str) -> str:
    """What two names share when they count as the same: their NFC form without case."""
    return unicodedata.normalize("NFC", name).casefold()


class _Stored(FieldAccessor):
    """A row shows its texts as they will be read again."""

    def __set__(self, instance: Model, value: Any) -> None:
        super().__set__(instance, _without_nul(value))


def _without_nul(value: Any) -> Any:
    return value.replace("\0", "") if isinstance(value, str) and "\0" in value else value


class _Text:
    """What both kinds of text columns do alike on all databases: they leave out NUL, which PostgreSQL does not take."""

    accessor_class = _Stored

    def db_value(self, value: Any) -> Any:
        """The text as it is stored, and compared."""
        return _without_nul(super().db_value(value))  # type: ignore[misc]

    def ddl(self, context: Context) -> NodeList:
        """The column's definition, with the order of its texts."""
        definition = super().ddl(context)  # type: ignore[misc]
        if proxy.obj.kind == "postgresql":
            definition.nodes.insert(2, SQL('COLLATE "C"'))
        elif proxy.obj.kind == "mysql":
            definition.nodes.insert(2, SQL(f"CHARACTER SET utf8mb4 COLLATE {proxy.obj.collation}"))
        return definition


class CharField(_Text, peewee.CharField):
    """A short text of bounded length, counted in characters."""


class TextField(_Text, peewee.TextField):
    """A text of any length."""

    def ddl_datatype(self, context: Context) -> SQL:
        """The type; what MySQL calls TEXT ends at 64 KiB."""
        return SQL("LONGTEXT") if proxy.obj.kind == "mysql" else super().ddl_datatype(context)


class JSONField(TextField):
    """A JSON value kept as text."""

    def db_value(self, value: Any) -> str | None:
        """The text to store; None stays NULL."""
        return None if value is None else orjson.dumps(value).decode()

    def python_value(self, value: str | None) -> Any:
        """The value that was stored."""
        return None if value is None else orjson.loads(value)


class Keyed(Model):
    """A row with an id of ours, whose values fit their columns."""

    id = CharField(max_length=32, primary_key=True, default=new_id)

    class Meta:
        database = proxy
        legacy_table_names = False

    @classmethod
    def insert(cls, __data: Any = None, **values: Any) -> Any:
        """As peewee's. Raises `InvalidArgument` for a value that its column cannot hold."""
        cls._check(values)
        return super().insert(__data, **values)

    @classmethod
    def update(cls, __data: Any = None, **values: Any) -> Any:
        """As `insert`."""
        cls._check(values)
        return super().update(__data, **values)

    @classmethod
    def _check(cls, values: Mapping[str, Any]) -> None:
        """The limits that servers set, which SQLite would pass over."""
        for name, value in values.items():
            column = cls._meta.fields[name]
            if isinstance(column, CharField) and isinstance(value, str) and len(value) > column.max_length:
                raise InvalidArgument(f"{name} exceeds {column.max_length} characters")
            bits = 63 if isinstance(column, BigIntegerField) else 31
            if isinstance(column, IntegerField) and isinstance(value, int) and not -(1 << bits) <= value < 1 << bits:
                raise InvalidArgument(f"{name} is out of range")


class Row(Keyed):
    """One that knows the times of its making and last change."""

    create_time = BigIntegerField(default=now_ms)
    update_time = BigIntegerField(default=now_ms)


class Tenant(Row):
    """Who owns things, and how many datasets it has."""

    name = CharField(max_length=128, unique=True)
    dataset_count = IntegerField(default=0, constraints=[SQL("DEFAULT 0")])


class ApiKey(Row):
    """A secret that stands for a tenant. `beta` is its weaker twin for read-only and bot routes."""

    tenant_id = CharField(max_length=32, index=True)
    token = CharField(max_length=64, unique=True)
    beta = CharField(max_length=32, unique=True)


class Dataset(Row):
    """Documents that are searched together, and how they are cut and embedded.

    `data_version` is another number after each change of what a search may find (`dataset_service.changed`).
    """

    tenant_id = CharField(max_length=32)
    created_by = CharField(max_length=32)
    name = CharField(max_length=128)
    name_key = CharField(max_length=255)
    avatar = TextField(null=True)
    description = TextField(null=True)
    language = CharField(max_length=32, default="English")
    permission = CharField(max_length=16, default="me")
    embedding_model = CharField(max_length=255)
    chunk_method = CharField(max_length=32, default="naive")
    pipeline_id = CharField(max_length=32, null=True)
    parser_config = JSONField(default=dict)
    connectors = JSONField(default=list)
    document_count = IntegerField(default=0)
    chunk_count = IntegerField(default=0)
    token_num = BigIntegerField(default=0)
    pagerank = IntegerField(default=0)
    similarity_threshold = DoubleField(default=0.2)
    vector_similarity_weight = DoubleField(default=0.3)
    data_version = BigIntegerField(default=new_version, constraints=[SQL("DEFAULT 0")])

    class Meta:
        indexes = (
            (("tenant_id", "name_key"), True),
            (("tenant_id", "create_time", "id"), False),
            (("tenant_id", "update_time", "id"), False),
        )


class Document(Row):
    """An uploaded file and what became of it. `folder` is where the caller says it belongs ("" or "a/b").

    `run` is UNSTART, RUNNING, CANCEL, DONE or FAIL; `version` counts its parse runs; `enabled` false keeps its chunks out of
    searches. `location` is the blob's key.
    """

    tenant_id = CharField(max_length=32)
    dataset_id = CharField(max_length=32)
    created_by = CharField(max_length=32)
    name = CharField(max_length=255)
    name_key = CharField(max_length=512)
    location = CharField(max_length=255)
    folder = CharField(max_length=1024, default="")
    size = BigIntegerField(default=0)
    type = CharField(max_length=16)
    suffix = CharField(max_length=32, default="")
    source_type = CharField(max_length=16, default="local")
    thumbnail = TextField(null=True)
    content_hash = CharField(max_length=64, default="")
    chunk_method = CharField(max_length=32, default="naive")
    pipeline_id = CharField(max_length=32, null=True)
    parser_config = JSONField(default=dict)
    meta_fields = JSONField(default=dict)
    chunk_count = IntegerField(default=0)
    token_count = BigIntegerField(default=0)
    progress = DoubleField(default=0.0)
    progress_msg = TextField(default="")
    process_begin_at = BigIntegerField(null=True)
    process_duration = DoubleField(default=0.0)
    run = CharField(max_length=16, default="UNSTART")
    enabled = BooleanField(default=True)
    version = IntegerField(default=0)

    class Meta:
        indexes = (
            (("dataset_id", "name_key"), True),
            (("dataset_id", "create_time", "id"), False),
            (("dataset_id", "update_time", "id"), False),
            (("tenant_id",), False),
        )


class DocumentMetadata(Keyed):
    """A key of a document's metadata and its value, both as JSON: an index of `Document.meta_fields` (`db.services.metadata_rows`)."""

    document_id = CharField(max_length=32)
    dataset_id = CharField(max_length=32)
    key = CharField(max_length=128)
    value = CharField(max_length=128)

    class Meta:
        indexes = (
            (("document_id", "key"), True),
            (("dataset_id", "key", "value", "document_id"), False),
        )


class Task(Row):
    """Background work. At most one of a kind per document; a parse run that is superseded has a version below its document's.

    Leased by `owner` until `lease_until`; due when `due_at` has passed and no lease holds. `attempt` counts the leases,
    `failures` the attempts that ended with a failure to be tried again.
    """

    kind = CharField(max_length=16)
    tenant_id = CharField(max_length=32)
    dataset_id = CharField(max_length=32)
    document_id = CharField(max_length=32)
    blob_key = CharField(max_length=255, default="")
    version = IntegerField(default=1)
    attempt = IntegerField(default=0)
    failures = IntegerField(default=0)
    owner = CharField(max_length=64, null=True)
    lease_until = BigIntegerField(default=0)
    due_at = BigIntegerField(default=now_ms)

    class Meta:
        indexes = (
            (("kind", "document_id"), True),
            (("tenant_id", "due_at"), False),
            (("due_at",), False),
        )


class Dialog(Row):
    """A chat assistant (a "chat" on the wire): datasets, a model, a prompt. Deleted softly."""

    tenant_id = CharField(max_length=32)
    name = CharField(max_length=255)
    name_key = CharField(max_length=512, null=True)
    description = TextField(default="")
    icon = TextField(default="")
    language = CharField(max_length=32, default="English")
    llm_id = CharField(max_length=255, default="")
    llm_setting = JSONField(default=dict)
    prompt_type = CharField(max_length=16, default="simple")
    prompt_config = JSONField(default=dict)
    meta_data_filter = JSONField(default=dict)
    similarity_threshold = DoubleField(default=0.1)
    vector_similarity_weight = DoubleField(default=0.3)
    top_n = IntegerField(default=6)
    top_k = IntegerField(default=1024)
    do_refer = CharField(max_length=1, default="1")
    rerank_id = CharField(max_length=255, default="")
    dataset_ids = JSONField(default=list)
    deleted = BooleanField(default=False)

    class Meta:
        indexes = (
            (("tenant_id", "name_key"), True),
            (("tenant_id", "deleted", "create_time", "id"), False),
            (("tenant_id", "deleted", "update_time", "id"), False),
        )


class Conversation(Row):
    """A session of a chat. Its turns are rows of `Message`."""

    tenant_id = CharField(max_length=32)
    dialog_id = CharField(max_length=32)
    name = CharField(max_length=255)
    user_id = CharField(max_length=255, default="")

    class Meta:
        indexes = (
            (("dialog_id", "create_time", "id"), False),
            (("dialog_id", "update_time", "id"), False),
        )


class Message(Row):
    """One message of a conversation, in order of `position`. `turn_id` is shared by a question and its answer.

    `reference` holds what an answer cites (assistant messages only), `created_at` seconds since the epoch.
    """

    conversation_id = CharField(max_length=32)
    position = IntegerField()
    turn_id = CharField(max_length=36, default="")
    role = CharField(max_length=16)
    content = TextField()
    reference = JSONField(null=True)
    extra = JSONField(default=dict)
    created_at = DoubleField(null=True)

    class Meta:
        indexes = ((("conversation_id", "position"), True),)


class SearchApp(Row):
    """A saved search (a "search" on the wire): datasets and how to search and summarise them."""

    tenant_id = CharField(max_length=32)
    created_by = CharField(max_length=32)
    name = CharField(max_length=255)
    name_key = CharField(max_length=512)
    description = TextField(default="")
    avatar = TextField(null=True)
    search_config = JSONField(default=dict)

    class Meta:
        indexes = (
            (("tenant_id", "name_key"), True),
            (("tenant_id", "create_time", "id"), False),
            (("tenant_id", "update_time", "id"), False),
        )


class SchemaVersion(Model):
    """The migrations that have run."""

    version = IntegerField(primary_key=True)
    applied_at = BigIntegerField(default=now_ms)

    class Meta:
        database = proxy
        legacy_table_names = False


class Move(Model):
    """The one row (id 1) that says whether this database may be written: see `db.services.move_service`.

    `detail` is what the program that moves the data must know to go on; `retired` names the places that data was moved away from.
    """

    id = IntegerField(primary_key=True)
    state = CharField(max_length=16, default="open")
    move_id = CharField(max_length=32, default="")
    detail = JSONField(default=dict)
    retired = JSONField(default=list)

    class Meta:
        database = proxy
        legacy_table_names = False
        table_name = "data_move"


ALL = (Tenant, ApiKey, Dataset, Document, DocumentMetadata, Task, Dialog, Conversation, Message, SearchApp)
