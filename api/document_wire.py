"""Documents as callers see them."""

from typing import Any

from api import respond
from api.schema.document import RUNS
from db.services import metadata_service
from db.services.document_service import DocumentRecord, Facets


def document(record: DocumentRecord) -> dict[str, Any]:
    """A document by itself."""
    return {
        "id": record.id,
        "dataset_id": record.dataset_id,
        "name": record.name,
        "location": _location(record),
        "size": record.size,
        "type": record.type,
        "suffix": record.suffix,
        "source_type": record.source_type,
        "created_by": record.created_by,
        "thumbnail": record.thumbnail,
        "chunk_method": record.chunk_method,
        "pipeline_id": record.pipeline_id,
        "parser_config": record.parser_config,
        "chunk_count": record.chunk_count,
        "token_count": max(0, record.token_count),
        "progress": record.progress,
        "progress_msg": record.progress_msg,
        "process_begin_at": respond.http_date(record.process_begin_at),
        "process_duration": record.process_duration,
        "run": record.run,
        "status": "1" if record.enabled else "0",
        **respond.times(record.create_time, record.update_time),
    }


def item(record: DocumentRecord, nickname: str) -> dict[str, Any]:
    """A document in a list."""
    thumbnail = record.thumbnail
    if thumbnail and not thumbnail.startswith("data:"):
        thumbnail = f"/api/v1/documents/images/{record.dataset_id}-{thumbnail}"
    beside = {"thumbnail": thumbnail, "meta_fields": record.meta_fields, "nickname": nickname, "pipeline_name": None}
    return document(record) | beside


def uploaded(record: DocumentRecord) -> dict[str, Any]:
    """A document that has just arrived."""
    names = (
        "id", "dataset_id", "chunk_method", "pipeline_id", "parser_config", "created_by", "type", "name", "source_type", "suffix",
        "location", "size", "thumbnail", "run",
    )  # fmt: skip
    full = document(record)
    return {name: full[name] for name in names} | {"content_hash": record.content_hash}


def raw(record: DocumentRecord) -> dict[str, Any]:
    """A document with the keys of RAGFlow's own table."""
    renamed = {
        "dataset_id": "kb_id", "chunk_method": "parser_id", "chunk_count": "chunk_num", "token_count": "token_num",
    }  # fmt: skip
    values = {renamed.get(name, name): value for name, value in document(record).items()}
    return values | {"run": str(RUNS.index(record.run)), "content_hash": record.content_hash, "meta_fields": record.meta_fields}


def facets(found: Facets) -> dict[str, Any]:
    """How many documents there are by suffix, run state and metadata."""
    summary = metadata_service.summarise(value[:3] for value in found.values)
    metadata: dict[str, dict[str, int]] = {key: dict(of_key["values"]) for key, of_key in summary.items()}
    metadata["empty_metadata"] = {"true": found.without_metadata}
    runs = {str(RUNS.index(run)): count for run, count in found.runs.items()}
    return {"total": found.total, "filter": {"suffix": found.suffixes, "run_status": runs, "metadata": metadata}}


def _location(record: DocumentRecord) -> str:
    return f"{record.folder}/{record.name}" if record.folder else record.name
