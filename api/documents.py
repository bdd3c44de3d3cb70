"""Finding the datasets and documents that a request names; another tenant's are unknown."""

from typing import Any

import orjson
from quart import request

from api.context import parts, tenant_id
from api.errors import ApiError
from db.services import dataset_service, document_service
from db.services.dataset_service import DatasetRecord
from db.services.document_service import DocumentRecord


async def find_dataset(dataset_id: str, otherwise: str) -> DatasetRecord:
    """The caller's dataset; ids may carry hyphens. Raises `ApiError` (102/404) with the text for a caller who has none."""
    dataset = await parts().session.read(dataset_service.get, tenant_id(), dataset_id.replace("-", ""))
    if dataset is None:
        raise ApiError(102, otherwise, 404)
    return dataset


async def find_document(dataset_id: str, document_id: str) -> DocumentRecord:
    """The document of the caller's dataset. Raises `ApiError` (102/404) as the chunk routes word it."""
    dataset = await find_dataset(dataset_id, f"You don't own the dataset {dataset_id}.")
    document = await parts().session.read(document_service.get, tenant_id(), document_id.replace("-", ""))
    if document is None or document.dataset_id != dataset.id:
        raise ApiError(102, f"you don't own the document {document_id}", 404)
    return document


def json_object_argument(name: str, *, with_raw: bool = False) -> dict[str, Any] | None:
    """A query parameter that holds a JSON object. Raises `ApiError` (102)."""
    raw = request.args.get(name)
    if not raw:
        return None
    try:
        value = orjson.loads(raw)
    except ValueError:
        raise ApiError(102, f"{name} must be valid JSON: {raw}." if with_raw else f"{name} must be valid JSON.") from None
    if not isinstance(value, dict):
        raise ApiError(102, f"{name} must be an object.")
    return value
