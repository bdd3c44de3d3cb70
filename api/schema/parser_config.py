"""`parser_config`: its schema, its defaults per chunk method, and how one is laid over another (contract, 3.6)."""

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import BeforeValidator, Field, model_validator

from api.schema.base import TEXT_LIMIT, Strict, refuse

# A wire default, from RAGFlow, Apache-2.0.
SUMMARY_PROMPT = (
    "Summarize the paragraphs below without inventing facts or changing numbers.\n"
    "Output exactly two parts in the same language as the source:\n"
    "1. First line: a concise title only.\n"
    "2. Following lines: a concise summary of the content.\n"
    "Do not output labels, Markdown headings, bullet points, or any other commentary.\n\n"
    "Paragraphs:\n{cluster_content}"
)
ENTITY_TYPES = ["organization", "person", "geo", "event", "category"]
OLD_RAPTOR_KEYS = ("threshold", "clustering_method", "tree_builder", "ext")


def _at_least_512(value: Any) -> Any:
    return 512 if isinstance(value, int) and not isinstance(value, bool) and value < 512 else value


def _indexing(value: Any) -> Any:
    return "indexing" if value == "vectorize" else value


class ParentChild(Strict):
    """Small chunks for finding, large ones for reading."""

    use_parent_child: bool = False
    children_delimiter: str = Field("\n", min_length=1)


class Raptor(Strict):
    """Kept and echoed; nothing acts on it."""

    use_raptor: bool = False
    prompt: str = Field(SUMMARY_PROMPT, min_length=1)
    max_token: Annotated[int, Field(ge=512, le=2048), BeforeValidator(_at_least_512)] = 512
    clustering_threshold: float = Field(0.3, ge=0, le=1)
    clustering_ratio: float = Field(0.5, ge=0, le=1)
    max_cluster: int = Field(64, ge=1, le=1024)
    random_seed: int = Field(0, ge=0)
    scope: Literal["file", "dataset"] = "file"
    auto_disable_for_structured_data: bool = True

    @model_validator(mode="before")
    @classmethod
    def _drop_old_keys(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if key not in OLD_RAPTOR_KEYS} if isinstance(value, dict) else value


class GraphRag(Strict):
    """Kept and echoed; nothing acts on it."""

    use_graphrag: bool = False
    entity_types: list[str] = Field(default_factory=lambda: list(ENTITY_TYPES))
    method: Literal["light", "general", "ner"] = "light"
    community: bool = False
    resolution: bool = False
    batch_chunk_token_size: int = Field(4096, ge=512, le=8196)
    retry_attempts: int = Field(2, ge=1, le=10)
    retry_backoff_seconds: float = Field(2.0, ge=0, le=600)
    retry_backoff_max_seconds: float = Field(60.0, ge=0, le=3600)
    build_subgraph_timeout_per_chunk_seconds: int = Field(300, ge=1, le=86400)
    build_subgraph_min_timeout_seconds: int = Field(600, ge=1, le=86400)
    merge_timeout_seconds: int = Field(180, ge=0, le=86400)
    resolution_timeout_seconds: int = Field(1800, ge=0, le=86400)
    community_timeout_seconds: int = Field(1800, ge=0, le=86400)
    lock_acquire_timeout_seconds: int = Field(600, ge=0, le=86400)


ColumnRole = Annotated[Literal["indexing", "metadata", "both"], BeforeValidator(_indexing)]


class ParserConfig(Strict):
    """How a document is cut into chunks."""

    auto_keywords: int = Field(0, ge=0, le=32)
    auto_questions: int = Field(0, ge=0, le=10)
    chunk_token_num: int = Field(512, ge=1, le=2048)
    delimiter: str = Field("\n", min_length=1)
    html4excel: bool = False
    layout_recognize: str = "DeepDOC"
    tag_kb_ids: list[str] = Field(default_factory=list)
    topn_tags: int = Field(1, ge=1, le=10)
    filename_embd_weight: Annotated[float, Field(ge=0, le=1)] | None = 0.1
    task_page_size: Annotated[int, Field(ge=1)] | None = None
    pages: list[list[int]] | None = None
    enable_children: bool = False
    children_delimiter: str = ""
    parent_child: ParentChild = Field(default_factory=ParentChild)
    compilation_template_group_id: list[str] = Field(default_factory=list)
    table_column_mode: Literal["auto", "manual"] | None = None
    table_column_roles: dict[str, ColumnRole] | None = None
    table_column_names: list[str] | None = None
    ext: dict[str, Any] | None = Field(
        None,
        description="any keys. `split_strategy` says where a text is cut: `recursive` (when left out), `sentence`, `token` or `character`; "
        "with another name parsing fails: `split strategy is not one of ...`. `overlapped_percent` is how much of a chunk is repeated",
    )
    raptor: Raptor = Field(default_factory=Raptor)
    graphrag: GraphRag = Field(default_factory=GraphRag)

    @model_validator(mode="after")
    def _within_limit(self) -> "ParserConfig":
        size = len(orjson.dumps(self.model_dump()).decode())
        if size > TEXT_LIMIT:
            raise refuse("too_long", f"Parser config exceeds size limit (max 65,535 characters). Current size: {size}")
        return self


_CONTEXT_SIZES = {"table_context_size": 0, "image_context_size": 0}
_OFF = {"raptor": {"use_raptor": False}, "graphrag": {"use_graphrag": False}, **_CONTEXT_SIZES}
_NAIVE = {
    "layout_recognize": "DeepDOC",
    "chunk_token_num": 512,
    "delimiter": "\n",
    "auto_keywords": 0,
    "auto_questions": 0,
    "html4excel": False,
    "topn_tags": 3,
    **_CONTEXT_SIZES,
    "children_delimiter": "",
    "raptor": {"use_raptor": True}
    | Raptor().model_dump(include={"prompt", "max_token", "clustering_threshold", "clustering_ratio", "max_cluster", "random_seed"}),
    "graphrag": {"use_graphrag": True} | GraphRag().model_dump(exclude={"use_graphrag", "community", "resolution"}),
    "parent_child": {"use_parent_child": False, "children_delimiter": "\n"},
}
_KNOWLEDGE_GRAPH = {
    "chunk_token_num": 8192,
    "delimiter": "\n",
    "entity_types": ["organization", "person", "location", "event", "time"],
    **_OFF,
}
TABLES: dict[str, dict[str, Any]] = {
    "naive": _NAIVE,
    "knowledge_graph": _KNOWLEDGE_GRAPH,
    **dict.fromkeys(("qa", "manual", "paper", "book", "laws", "presentation"), _OFF),
    **dict.fromkeys(("tag", "resume", "table", "one", "email", "picture", "audio"), _CONTEXT_SIZES),
}


def method_table(chunk_method: str) -> dict[str, Any]:
    """What is stored for a chunk method when the caller says nothing."""
    return copy.deepcopy(TABLES[chunk_method])


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, key by key at every level."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return result


def created(chunk_method: str, config: ParserConfig | None, default_chat_model: str) -> dict[str, Any]:
    """The config of a new dataset: the method's table, with the whole schema over it when the caller sent anything."""
    table = method_table(chunk_method)
    if config is not None and config.model_fields_set:
        table = merged(table, config.model_dump(exclude=None if config.ext else {"ext"}))
    return table | {"llm_id": default_chat_model}


def sent(config: ParserConfig | None) -> dict[str, Any]:
    """The keys of a config that the caller sent, and no others."""
    return {} if config is None else config.model_dump(exclude_unset=True)


def updated(stored: Mapping[str, Any], config: ParserConfig) -> dict[str, Any]:
    """The config of a dataset after an update that sent some keys."""
    over = sent(config)
    if not over.get("parent_child", {}).get("use_parent_child"):
        over |= {"children_delimiter": "", "enable_children": False}
    return merged(stored, over)
