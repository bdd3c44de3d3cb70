"""Parsing documents: start and stop, two routes each (contract, 5)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import structlog
from quart import Response

from api import chunk_edits, respond
from api.body import tolerant
from api.context import parts, tenant_id
from api.documents import find_dataset
from api.errors import ApiError
from api.routes import Routes
from api.schema import document as schema
from api.schema.base import SHOWN_IDS
from db.services import document_service, task_service
from db.services.dataset_service import DatasetRecord
from db.services.document_service import DocumentRecord
from rag.errors import MillraceError

api = Routes("parsing")
log = structlog.get_logger("millrace.parsing")

REQUIRED = "`document_ids` is required"
NOT_RUNNING = "Can't stop parsing document that has not started or already completed"


@api.route("POST", "/datasets/<dataset_id>/chunks", body=schema.DocumentIds, data=schema.Parsing)
async def start_parsing(dataset_id: str) -> Response:
    """Start parsing documents that are not being parsed."""
    dataset, ids = await _wanted(dataset_id)
    found, unknown, repeated = await _look_up(dataset, ids)
    if any(document.run == "RUNNING" for document in found):
        raise ApiError(102, "Can't parse document that is currently being processed", 409)
    await _start(found)
    if unknown:
        raise _unknown(unknown)
    return respond.reply(_with_errors(len(found), repeated)) if repeated else respond.reply()


@api.route("DELETE", "/datasets/<dataset_id>/chunks", body=schema.DocumentIds, data=schema.Parsing)
async def stop_parsing(dataset_id: str) -> Response:
    """Stop parsing documents, and drop what there is of their chunks."""
    dataset, ids = await _wanted(dataset_id)
    found, unknown, repeated = await _look_up(dataset, ids)
    if unknown:
        raise ApiError(102, f"you don't own the document {unknown[0]}", 404)
    if any(document.run != "RUNNING" for document in found):
        raise ApiError(102, NOT_RUNNING, 409, data={"error_code": "DOC_STOP_PARSING_INVALID_STATE"})
    await _stop(found)
    return respond.reply(_with_errors(len(found), repeated)) if repeated else respond.reply()


@api.route("POST", "/datasets/<dataset_id>/documents/parse", body=schema.DocumentIds, data=schema.Parsing)
async def parse_documents(dataset_id: str) -> Response:
    """Start parsing documents, also those that are being parsed."""
    dataset, ids = await _wanted(dataset_id)
    found, unknown, repeated = await _look_up(dataset, ids)
    await _start(found)
    if unknown:
        raise _unknown(unknown)
    return respond.reply(_with_errors(len(found), repeated))


@api.route("POST", "/datasets/<dataset_id>/documents/stop", body=schema.DocumentIds, data=schema.Parsing)
async def stop_documents(dataset_id: str) -> Response:
    """Stop parsing those of the documents that are being parsed."""
    dataset, ids = await _wanted(dataset_id)
    found, unknown, repeated = await _look_up(dataset, ids)
    if unknown:
        raise _unknown(unknown)
    running = [document for document in found if document.run == "RUNNING"]
    await _stop(running)
    data = _with_errors(len(running), repeated)
    if len(running) < len(found):
        data["errors"] = [NOT_RUNNING, *data.get("errors", [])]
    return respond.reply(data)


async def _wanted(dataset_id: str) -> tuple[DatasetRecord, list[str]]:
    dataset = await find_dataset(dataset_id, f"You don't own the dataset {dataset_id}.")
    ids = (await tolerant()).get("document_ids")
    if not isinstance(ids, list) or not ids:
        raise ApiError(102, REQUIRED)
    return dataset, [str(document_id) for document_id in ids]


async def _look_up(dataset: DatasetRecord, ids: Sequence[str]) -> tuple[list[DocumentRecord], list[str], list[str]]:
    """The documents, the ids that the dataset does not have, and those that were given more than once."""
    counts = Counter(ids)
    once = list(counts)
    found = await parts().session.read(document_service.get_many, dataset.id, once)
    repeated = [document_id for document_id, count in counts.items() if count > 1]
    return [found[one] for one in once if one in found], [one for one in once if one not in found], repeated


async def _start(documents: Sequence[DocumentRecord]) -> None:
    """The runs are on their way when this returns: those of documents whose old chunks could not be removed here wait for a worker."""
    if not documents:
        return
    drops = await parts().session.write(task_service.start, [document.id for document in documents])
    try:
        await chunk_edits.drop(parts(), tenant_id(), drops)
    except MillraceError as error:
        log.warning("old chunks are left to a worker", documents=len(drops), error=f"{type(error).__name__}: {error}")
    worker = parts().worker
    if worker is not None:
        worker.wake()


async def _stop(documents: Sequence[DocumentRecord]) -> None:
    if documents:
        ids = [document.id for document in documents]
        await chunk_edits.drop(parts(), tenant_id(), await parts().session.write(task_service.stop, ids))


def _unknown(ids: Sequence[str]) -> ApiError:
    return ApiError(102, f"Documents not found: {list(ids[:SHOWN_IDS])}", 404)


def _with_errors(number: int, repeated: Sequence[str]) -> dict[str, Any]:
    errors = [f"Duplicate document ids: {document_id}" for document_id in repeated]
    return {"success_count": number} | ({"errors": errors} if errors else {})
