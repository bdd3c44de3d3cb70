"""Retrieval on the wire."""

from typing import Any, Literal

from pydantic import Field

from api.schema.base import Answer, Tolerant


class MetadataCondition(Tolerant):
    """Which documents take part, by their metadata."""

    logic: Literal["and", "or"] = "and"
    conditions: list[dict[str, Any]] = Field([], description="`{name, comparison_operator, value}`")


class ReferenceMetadata(Tolerant):
    """Whether chunks come with their documents' metadata, and which keys of it."""

    include: bool = False
    fields: list[str] | None = None


class Retrieval(Tolerant):
    """A question to datasets."""

    dataset_ids: list[str]
    question: str
    document_ids: list[str] = Field([])
    page: int = 1
    page_size: int = 30
    similarity_threshold: float = 0.2
    vector_similarity_weight: float = 0.3
    top_k: int = 1024
    rerank_id: str | None = None
    keyword: bool = False
    highlight: bool = False
    cross_languages: list[str] | None = None
    metadata_condition: MetadataCondition | None = None
    use_kg: bool = False
    toc_enhance: bool = False
    reference_metadata: ReferenceMetadata | None = None
    explain: bool = Field(False, description="adds milliseconds by stage, and each chunk's scores and ranks by arm")


class RetrievedChunk(Answer):
    """A chunk that answers a question."""

    id: str
    content: str
    content_ltks: str
    document_id: str
    document_keyword: str
    dataset_id: str
    important_keywords: list[str]
    tag_kwd: list[str]
    image_id: str
    similarity: float
    vector_similarity: float
    term_similarity: float
    positions: list[list[int]]
    doc_type_kwd: str
    mom_id: str
    row_id: str | None
    highlight: str | None = None
    document_metadata: dict[str, Any] | None = None
    explain: dict[str, Any] | None = None


class DocumentCount(Answer):
    """How many of the chunks found come from a document."""

    doc_name: str
    doc_id: str
    count: int


class Retrieved(Answer):
    """A page of a ranked list."""

    total: int
    chunks: list[RetrievedChunk]
    doc_aggs: list[DocumentCount] | dict[str, Any]
    degraded: list[str] = Field([], description="stages that failed and were left out")
    reasons: dict[str, str] = Field({}, description="why, by stage, where something can be told")
    timings: dict[str, float] | None = Field(None, description="milliseconds by stage")


class DifyRetrieval(Tolerant):
    """A question of Dify's."""

    knowledge_id: str
    query: str
    use_kg: bool = False
    retrieval_setting: dict[str, float] = Field({}, description="`top_k`, `score_threshold`")
    metadata_condition: MetadataCondition | None = None


class DifyQuery(Tolerant):
    """The same as a query string."""

    knowledge_id: str
    query: str
    use_kg: bool = False
    top_k: int = 1024
    score_threshold: float = 0.0


class DifyRecord(Answer):
    """A chunk as Dify sees it."""

    content: str
    score: float
    title: str
    metadata: dict[str, Any]


class DifyRecords(Answer):
    """What Dify gets."""

    records: list[DifyRecord]
