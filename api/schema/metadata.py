"""Metadata on the wire."""

from typing import Any

from pydantic import Field

from api.schema.base import Answer, Tolerant


class SummaryQuery(Tolerant):
    """Which documents to summarise."""

    doc_ids: str = Field("", description="ids joined by commas; all documents when left out")


class KeySummary(Answer):
    """The values of a metadata key, each with its count, by falling count."""

    type: str
    values: list[tuple[str, int]]


class Summary(Answer):
    """The metadata of documents, by key."""

    summary: dict[str, KeySummary]


class Selector(Tolerant):
    """Which documents to change."""

    document_ids: list[str] | None = None
    metadata_condition: dict[str, Any] | None = None


class MetadataChange(Tolerant):
    """Changes to the metadata of several documents."""

    selector: Selector = Field(default_factory=Selector)
    updates: list[dict[str, Any]] = Field([], description="`{key, value, match?}`")
    deletes: list[dict[str, Any]] = Field([], description="`{key, value?}`")


class MetadataChanged(Answer):
    """How many documents were changed, of how many selected."""

    updated: int
    matched_docs: int


class DocumentMetadataConfig(Tolerant):
    """The metadata config of one document."""

    metadata: Any
