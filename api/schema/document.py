"""Documents on the wire."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from api.schema.base import Answer, Strict, Timed, Tolerant, no_repeats, refuse
from api.schema.parser_config import ParserConfig

METHODS = (
    "naive", "manual", "qa", "table", "paper", "book", "laws", "presentation", "picture", "one", "knowledge_graph", "email",
    "audio", "tag",
)  # fmt: skip
TYPES = ("pdf", "doc", "visual", "aural", "virtual", "folder", "other")
RUNS = ("UNSTART", "RUNNING", "CANCEL", "DONE", "FAIL")


def _known_method(value: str | None) -> str | None:
    if value and value not in METHODS:
        raise refuse("method", f"`chunk_method` {value} doesn't exist")
    return value


def _metadata(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    for item in value.values():
        if isinstance(item, list):
            if not all(isinstance(part, (str, int, float)) for part in item):
                raise refuse("metadata", f"The type is not supported in list: {item}")
        elif not isinstance(item, (str, int, float)):
            raise refuse("metadata", f"The type is not supported: {item}")
    return value


MetaFields = Annotated[dict[str, Any], BeforeValidator(_metadata)]


class UploadForm(Tolerant):
    """The parts of an upload."""

    file: list[Annotated[str, Field(json_schema_extra={"format": "binary"})]] = Field(description="one part a file")
    parent_path: str = Field("", description="where the files belong: `a/b`")
    parser_config: str = Field("", description="JSON; only `table_column_mode` and `table_column_roles` count")


class UploadQuery(Tolerant):
    """How to take an upload."""

    type: Literal["local", "web", "empty"] = "local"
    return_raw_files: bool = False


class DocumentUpdate(Tolerant):
    """Changes to a document; what is absent stays."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str | None = None
    chunk_method: Annotated[str, AfterValidator(_known_method)] | None = None
    enabled: Literal[0, 1] | None = None
    chunk_count: Annotated[int, Field(ge=0)] | None = None
    token_count: Annotated[int, Field(ge=0)] | None = None
    progress: Annotated[float, Field(ge=0, le=1)] | None = None
    parser_config: ParserConfig | None = None
    meta_fields: MetaFields | None = None
    pipeline_id: str | None = None


class DocumentDelete(Strict):
    """Which documents to delete."""

    ids: Annotated[list[str] | None, AfterValidator(no_repeats)] = None
    delete_all: bool = False


class DocumentList(Tolerant):
    """Which documents to list."""

    page: int = 1
    page_size: int = 30
    orderby: Literal["create_time", "update_time", "name"] = "create_time"
    desc: bool = True
    keywords: str = Field("", description="part of the name")
    id: str = ""
    name: str = ""
    ids: list[str] = Field([])
    suffix: list[str] = Field([])
    types: list[str] = Field([])
    run: list[str] = Field([], description="UNSTART, RUNNING, CANCEL, DONE, FAIL or 0 to 4")
    create_time_from: int = Field(0, description="milliseconds; applied after paging")
    create_time_to: int = 0
    metadata_condition: str = Field("", description="JSON")
    metadata: str = Field("", description="JSON: `{key: value or [values]}`")
    return_empty_metadata: bool = False
    type: Literal["filter"] | None = None


class Document(Timed):
    """A document."""

    id: str
    dataset_id: str
    name: str
    location: str
    size: int
    type: str
    suffix: str
    source_type: str
    created_by: str
    thumbnail: str | None
    chunk_method: str
    pipeline_id: str | None
    parser_config: dict[str, Any]
    chunk_count: int
    token_count: int
    progress: float
    progress_msg: str
    process_begin_at: str | None
    process_duration: float
    run: Literal["UNSTART", "RUNNING", "CANCEL", "DONE", "FAIL"]
    status: Literal["0", "1"]


class DocumentItem(Document):
    """A document in a list."""

    meta_fields: dict[str, Any]
    nickname: str
    pipeline_name: str | None


class DocumentPage(Answer):
    """A page of documents."""

    total: int
    docs: list[DocumentItem]


class DocumentFilter(Answer):
    """How many documents there are of each kind."""

    total: int
    filter: dict[str, dict[str, Any]]


class Uploaded(Answer):
    """A document that has just arrived."""

    id: str
    dataset_id: str
    chunk_method: str
    pipeline_id: str | None
    parser_config: dict[str, Any]
    created_by: str
    type: str
    name: str
    source_type: str
    suffix: str
    location: str
    size: int
    thumbnail: str | None
    content_hash: str
    run: Literal["UNSTART"]


class DocumentsDeleted(Answer):
    """How many documents were deleted."""

    deleted: int


class DocumentIds(Tolerant):
    """Which documents to parse, or to stop parsing."""

    document_ids: list[str]


class Parsing(Answer):
    """How many documents were started or stopped."""

    success_count: int | None = None
    errors: list[str] | None = None
    error_code: str | None = None
