"""Every setting, declared once: name, default, help, unit, secret. `docs/settings.md` and `millrace check` are made from this.

A setting `port` is read from the environment as `MILLRACE_PORT` and from the file as `port = 9380`; the environment wins.
Models can only be given in the file, as `[[models]]` tables; their keys are named by environment variable, never written down.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag.cores import cores
from rag.errors import SettingsError

PREFIX = "MILLRACE_"
FILE_NAME = "millrace.toml"
CORES = cores()
REMOTE_SEARCHES, REMOTE_TRANSACTIONS = 32, 16

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
BYTES = {"unit": "bytes"}
SECONDS = {"unit": "seconds"}


class ModelSettings(BaseModel):
    """One `[[models]]` table: a model that callers may name as `<name>@<provider>`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="the model's name, as its endpoint knows it")
    provider: str = Field(min_length=1, pattern=r"^[^@]+$", description="a name of your choice for the endpoint")
    kind: Literal["chat", "embedding", "rerank"] = Field(description="what the model does")
    base_url: str | None = Field(None, description="the OpenAI-compatible endpoint, with or without /v1")
    api_key_env: str | None = Field(None, description="the environment variable that holds the key")
    path: Path | None = Field(None, description="a model directory on this machine; beside a base_url it only counts tokens (embedding)")
    context_tokens: Positive = Field(
        8192, description="tokens read and written together (chat), of query and text (rerank), or of a text; a longer one is embedded in "
        "windows (embedding)",
    )  # fmt: skip
    dimension: Positive | None = Field(None, description="length of its vectors; asked of the endpoint when left out (embedding)")
    max_batch: Positive | None = Field(
        None, description="texts sent in one call; 32 when left out (embedding), as many as its vendor takes (rerank)"
    )
    concurrency: Positive | None = Field(
        None,
        description="calls under way at once, shared by the models of one provider and kind, of which the smallest number counts; "
        "128 when left out, 1024 for chat",
    )
    timeout_seconds: Seconds = Field(60.0, description="longest wait for an answer, or for the next piece of a streamed one")
    languages: list[str] | None = Field(None, description="languages an embedding model understands (ISO 639-1); all when left out")
    pooling: Literal["cls", "mean", "max", "mean_sqrt", "last"] | None = Field(
        None, description="how a model directory that does not say so pools its tokens (embedding)"
    )
    query_prompt: str | None = Field(None, description="text put before a question; the model directory's own when left out (embedding)")
    document_prompt: str | None = Field(None, description="text put before a passage; the model directory's own when left out (embedding)")
    default: bool = Field(False, description="used where a caller names no model of this kind")


class Settings(BaseModel):
    """The server's settings. Built by `load`; frozen afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(9380, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    worker_metrics_port: int = Field(0, ge=0, le=65535, description="port where `millrace worker` gives /metrics and /healthz; 0 is none")
    data_dir: Path = Field(Path("data"), description="where documents, the database and the index live")
    cache_dir: Path | None = Field(None, description="where what is built from model weights is kept; `<data_dir>/cache` when left out")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line that is logged")
    slow_callback_seconds: float = Field(
        0.0, ge=0, description="steps that hold the event loop for more CPU time are logged, with where they were, and counted; 0 is off",
        json_schema_extra=SECONDS,
    )  # fmt: skip
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto writes text to a terminal and JSON elsewhere")

    max_upload_bytes: Positive = Field(1 << 30, description="largest file that is taken", json_schema_extra=BYTES)
    max_body_bytes: Positive = Field(8 << 20, description="largest JSON body that is taken", json_schema_extra=BYTES)
    min_body_bytes_per_second: int = Field(
        1024, ge=0, description="slowest request body that is waited for, on average after `request_timeout_seconds`; 0 for any"
    )
    request_timeout_seconds: Seconds = Field(60.0, description="deadline of a request that is not a stream", json_schema_extra=SECONDS)
    chat_timeout_seconds: Seconds = Field(600.0, description="deadline of a whole chat answer", json_schema_extra=SECONDS)
    drain_seconds: Seconds = Field(30.0, description="how long a stopping server lets requests finish", json_schema_extra=SECONDS)

    database_url: str = Field(
        "",
        description="`postgresql://user:password@host:5432/name` or `mysql://…`; a SQLite file in `<data_dir>` when left out",
        repr=False,
    )
    database_password: str = Field("", description="password of the database's user, where the URL has none", repr=False)
    database_timeout_seconds: Seconds = Field(
        10.0, description="longest wait for one answer of a database server", json_schema_extra=SECONDS
    )  # fmt: skip

    store: Literal["embedded", "elasticsearch"] = Field("embedded", description="what keeps and finds chunks")
    elasticsearch_hosts: str = Field("http://127.0.0.1:9200", description="addresses of the cluster, comma separated")
    elasticsearch_user: str = Field("", description="user of the cluster, where it asks for one and no API key is given")
    elasticsearch_password: str = Field("", description="the user's password", repr=False)
    elasticsearch_password_file: Path | None = Field(None, description="file that holds the password instead")
    elasticsearch_api_key: str = Field("", description="API key of the cluster, as it shows it encoded", repr=False)
    elasticsearch_api_key_file: Path | None = Field(None, description="file that holds the API key instead")
    elasticsearch_ca_file: Path | None = Field(None, description="certificates (PEM) of the authority that signed the cluster's own")
    elasticsearch_index_prefix: str = Field(
        "millrace-",
        pattern=r"^[a-z0-9][a-z0-9_.-]*$",
        description="how the names of our indexes begin; two installations in one cluster need two",
    )
    elasticsearch_shards: Positive = Field(1, description="shards of a new tenant's index; more only where one machine cannot hold it")
    elasticsearch_replicas: int | None = Field(
        None, ge=0, description="copies of each shard of a new index; one where the cluster has a second node when left out"
    )
    elasticsearch_vectors: Literal["auto", "flat", "hnsw", "int8_hnsw"] = Field(
        "auto",
        description="how a new index finds vectors: flat compares all and misses none, the others are quicker for a million and more; "
        "auto is flat where the cluster knows it (8.13), else hnsw",
    )
    elasticsearch_timeout_seconds: Seconds = Field(
        15.0, description="longest wait for one answer of the cluster", json_schema_extra=SECONDS
    )  # fmt: skip

    blob_url: str = Field("", description="where uploaded files are kept: `s3://bucket/prefix`; `<data_dir>/blobs` when left out")
    blob_endpoint: str = Field("", description="address of an S3 service that is not Amazon's; keys come from the AWS_ variables")
    blob_region: str = Field("", description="region of the bucket; `AWS_REGION` or us-east-1 when left out")
    blob_timeout_seconds: Seconds = Field(15.0, description="longest wait for one request to the S3 service", json_schema_extra=SECONDS)

    db_threads: Positive | None = Field(
        None, description="threads for the database, each with a connection: 4 for SQLite, 16 for a database server when left out"
    )
    search_threads: Positive | None = Field(
        None, description="threads that search the store: one a core in the embedded one, 32 that wait for Elasticsearch when left out"
    )
    search_process: bool = Field(True, description="whether the embedded store is searched in a process beside a server that is alone")
    write_threads: Positive = Field(4, description="threads that write to the search store")
    blob_threads: Positive = Field(4, description="threads for reading and writing files")
    model_threads: Positive = Field(CORES, description="threads for local models answering queries")
    rerank_threads: Positive = Field(max(1, CORES - 1), description="threads for local rerankers")
    ingest_model_threads: Positive = Field(max(1, CORES - 1), description="threads for local models embedding documents")
    queue_limit: Positive = Field(1024, description="calls that may wait for a thread of a pool; more are refused with 503")

    patience_seconds: Seconds = Field(
        2.0, description="a request that would wait longer for its turn is refused with 503; chats may wait five times as long",
        json_schema_extra=SECONDS,
    )  # fmt: skip

    redis_url: str = Field(
        "", description="a Redis that the processes share; without one each has a cache and limits of its own", repr=False
    )
    redis_timeout_seconds: Seconds = Field(0.1, description="longest wait for Redis before going on without it", json_schema_extra=SECONDS)
    cache_bytes: int = Field(32 << 20, ge=1 << 20, description="memory a process has for what it remembers", json_schema_extra=BYTES)
    cache_results: bool | None = Field(
        None, description="whether results of searches are remembered; with a Redis they are, without it not, when left out"
    )
    cache_seconds: Seconds = Field(
        300.0, description="how long a result is remembered, if its data stays the same", json_schema_extra=SECONDS
    )
    rate_limit_per_second: float = Field(0.0, ge=0, description="requests a second that an API key may make; 0 is no limit")
    rate_limit_burst: Positive = Field(20, description="requests that an API key may make at once after a pause")

    ingest_workers: int = Field(
        32, ge=0, description="documents this server works on at once, a quarter of them of one tenant; 0 leaves it to `millrace worker`"
    )
    parser_processes: Positive = Field(2, description="processes that parse documents")
    parser_memory_bytes: Positive = Field(2 << 30, description="address space of a parser process", json_schema_extra=BYTES)
    parser_timeout_seconds: Seconds = Field(600.0, description="longest time for parsing one document", json_schema_extra=SECONDS)
    lease_seconds: Seconds = Field(15.0, description="a worker that is silent for so long loses its task", json_schema_extra=SECONDS)

    rerank_candidates: Positive = Field(64, description="candidates a reranker scores")
    embed_timeout_seconds: Seconds = Field(
        10.0, description="longest time embedding a question may take of a request, and at most half of it; then words alone are searched",
        json_schema_extra=SECONDS,
    )  # fmt: skip
    rerank_timeout_seconds: Seconds = Field(
        10.0, description="longest time reranking may take of a request, with the models that stand in for a failing one",
        json_schema_extra=SECONDS,
    )  # fmt: skip
    keep_vector_only: bool = Field(True, description="whether chunks that share no word with the question are found while others do")
    default_tenant: str = Field("default", description="name of the tenant made at the first start")

    aliases: dict[str, str] = Field(default_factory=dict, description='other names for models: `alias = "<model>@<provider>"` (file only)')
    models: list[ModelSettings] = Field(default_factory=list, description="models beside the built-in ones (file only)")

    @property
    def transactions_at_once(self) -> int:
        """Threads for the database. One writes to SQLite at a time, and what it reads is in memory."""
        return self.db_threads or (REMOTE_TRANSACTIONS if self.database_url else 4)

    @property
    def searches_at_once(self) -> int:
        """Threads that search. More than cores would only wait for each other in this process; for another one to answer they may."""
        return self.search_threads or (CORES if self.store == "embedded" else REMOTE_SEARCHES)


FILE_ONLY = ("aliases", "models")
# What says where a part is, or lets us in, and the setting that says whether the part is used at all.
_PARTS = {
    "elasticsearch_hosts": "store",
    "elasticsearch_user": "store",
    "elasticsearch_password": "store",
    "elasticsearch_password_file": "store",
    "elasticsearch_api_key": "store",
    "elasticsearch_api_key_file": "store",
    "elasticsearch_ca_file": "store",
    "database_password": "database_url",
    "blob_endpoint": "blob_url",
    "blob_region": "blob_url",
}
_UNUSED = {
    "store": "chunks are kept in the data directory: set MILLRACE_STORE=elasticsearch",
    "database_url": "the database is a file in the data directory: set MILLRACE_DATABASE_URL",
    "blob_url": "files are kept in the data directory: set MILLRACE_BLOB_URL",
}


def load(environ: Mapping[str, str], folder: Path) -> Settings:
    """The settings from `folder/millrace.toml` (or the file `MILLRACE_CONFIG` names), overridden by the environment.

    Raises `SettingsError` with one line for the first unknown name, malformed value or value that nothing would use: data would
    go elsewhere than whoever set it thinks.
    """
    values = _from_file(Path(environ.get(PREFIX + "CONFIG") or folder / FILE_NAME), required=bool(environ.get(PREFIX + "CONFIG")))
    for variable in sorted(environ):
        # MILLRACE_TEST_* belongs to the tests: addresses of real services
        if not variable.startswith(PREFIX) or variable == PREFIX + "CONFIG" or variable.startswith(PREFIX + "TEST_"):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in Settings.model_fields or name in FILE_ONLY:
            raise SettingsError(f"unknown setting {variable}")
        values[name] = environ[variable]
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_first_line(error)) from None
    for name, part in _PARTS.items():
        if values.get(name) and getattr(settings, part) == Settings.model_fields[part].default:
            raise SettingsError(f"setting {name} is given, but {_UNUSED[part]}, or leave {PREFIX}{name.upper()} out")
    return settings


def _from_file(path: Path, required: bool) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise SettingsError(f"the settings file {path} does not exist")
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown setting {name}"
    variable = "" if first["loc"][0] in FILE_ONLY else f" ({PREFIX}{name.upper()})"
    return f"setting {name}{variable}: {first['msg'].lower()}"
