"""Datasets on the wire."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo, create_model, field_validator, model_validator

from api.schema.base import Answer, Avatar, ChunkMethod, HexId, IdList, Lax, LongText, Shown, Strict, Timed, refuse, within_bytes
from api.schema.parser_config import ParserConfig

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=128), within_bytes(128), Shown]
BACKGROUND_KINDS = (
    "graphrag", "raptor", "mindmap", "wiki", "skill", "structure_graph", "structure_mindmap", "timeline", "session_graph",
    "session_essence", "structure",
)  # fmt: skip


class MetadataField(Strict):
    """A metadata key that documents of a dataset may carry."""

    key: str = Field(min_length=1, max_length=255)
    type: Literal["string", "list", "time", "number"] = "string"
    description: str | None = None
    enum: list[str] | None = None


class MetadataConfig(Strict):
    """The metadata keys of a dataset."""

    metadata: list[MetadataField] = Field(default_factory=list)
    built_in_metadata: list[MetadataField] = Field(default_factory=list)


class DatasetBody(Strict):
    """What creating and changing a dataset share."""

    avatar: Avatar = None
    description: LongText | None = None
    embedding_model: Annotated[str, StringConstraints(strip_whitespace=True, max_length=255)] | None = None
    permission: Literal["me", "team"] = "me"
    chunk_method: ChunkMethod = "naive"
    parser_config: ParserConfig | None = None
    parse_type: Annotated[int, Field(ge=0, le=64)] | None = None
    pipeline_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    auto_metadata_config: MetadataConfig | None = None
    ext: dict[str, Any] = Field(default_factory=dict)

    @field_validator("embedding_model")
    @classmethod
    def _names_a_provider(cls, value: str | None, info: ValidationInfo) -> str | None:
        """An alias or an id may be anything; any other identifier names its provider. Context: `known(name) -> bool`."""
        if value is None or (info.context or {}).get("known", lambda _: False)(value):
            return value
        model, at, provider = value.partition("@")
        if not at:
            raise refuse("model", "embedding model identifier must follow <model_name>@<provider> format")
        if not model.strip() or not provider.strip():
            raise refuse("model", "both model_name and provider must be non-empty strings")
        return value


class DatasetCreate(DatasetBody):
    """A new dataset."""

    name: Name

    @model_validator(mode="after")
    def _pipeline_or_method(self) -> "DatasetCreate":
        pipeline = {"parse_type": self.parse_type, "pipeline_id": self.pipeline_id}
        given = [name for name, value in pipeline.items() if value is not None]
        if "chunk_method" in self.model_fields_set:
            if given:
                raise refuse("pipeline", f"parser_id provided → disallowed fields present: {', '.join(given)}")
        elif len(given) == 1:
            missing = [name for name in pipeline if name not in given]
            raise refuse("pipeline", f"parser_id omitted → required fields missing: {', '.join(missing)}")
        return self


class DatasetUpdate(DatasetBody):
    """Changes to a dataset; what is absent stays."""

    name: Name = Field(default_factory=str)
    pagerank: int = Field(0, ge=0, le=100)
    language: str = Field("English", max_length=32)
    connectors: list[dict[str, Any]] = Field(default_factory=list)


class DatasetDelete(Strict):
    """Which datasets to delete."""

    ids: IdList | None = None
    delete_all: bool = False


def _json_object(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except ValueError:
        raise refuse("ext", "Input should be a valid dictionary") from None


class DatasetListExt(Lax):
    """Further conditions of a list of datasets."""

    parser_id: str | None = None
    keywords: str = ""
    owner_ids: list[str] = Field(default_factory=list)


class DatasetList(Lax):
    """Which datasets to list."""

    id: HexId | None = None
    ids: IdList = Field(default_factory=list, max_length=100)
    name: str | None = None
    page: int = Field(1, ge=1)
    page_size: int = Field(30, ge=1, le=100)
    orderby: Literal["create_time", "update_time"] = "create_time"
    desc: bool = True
    include_parsing_status: bool = False
    ext: Annotated[DatasetListExt, BeforeValidator(_json_object)] = Field(default_factory=DatasetListExt)
    type: Literal["filter"] | None = None


class DatasetRow(Timed):
    """What a dataset consists of."""

    id: str
    name: str
    avatar: str | None
    description: str | None
    tenant_id: str
    created_by: str
    language: str
    permission: str
    embedding_model: str
    tenant_embd_id: str | None
    chunk_method: str
    pipeline_id: str | None
    parser_config: dict[str, Any]
    document_count: int
    chunk_count: int
    token_num: int
    pagerank: int
    similarity_threshold: float
    vector_similarity_weight: float
    status: str


Dataset = create_model(  # each kind of background work that a dataset may have had, with its time
    "Dataset",
    __base__=DatasetRow,
    __doc__="A dataset.",
    **{f"{kind}_task_{what}": (None, ...) for kind in BACKGROUND_KINDS for what in ("id", "finish_at")},
)


class DatasetItem(Dataset):
    """A dataset in a list."""

    nickname: str
    tenant_avatar: str | None
    embedding_model_name: str
    parsing_status: dict[str, int] | None = None


class DatasetDetail(Dataset):
    """A dataset by itself; `size` in bytes."""

    size: int
    connectors: list[Any]


class DatasetChanged(Dataset):
    """A dataset after a change."""

    connectors: list[Any]


class Deleted(Answer):
    """How many were deleted."""

    success_count: int
    errors: list[str] | None = None
