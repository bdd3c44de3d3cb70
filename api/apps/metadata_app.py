"""Metadata of documents, and what a dataset says about it (contract, 8)."""

from collections.abc import Mapping
from typing import Any

from quart import Response, request

from api import document_wire, respond
from api.apps.dataset_app import lacks_permission, owned
from api.body import shown_ids, strict, tolerant
from api.condition import check_condition
from api.context import parts, tenant_id
from api.documents import find_dataset
from api.errors import ApiError
from api.routes import Routes
from api.schema import dataset as dataset_schema
from api.schema import metadata as schema
from db.services import dataset_service, document_service, metadata_service

api = Routes("metadata")


@api.route("GET", "/datasets/<dataset_id>/metadata/summary", query=schema.SummaryQuery, data=schema.Summary)
async def summarise_metadata(dataset_id: str) -> Response:
    """Summarise the metadata of a dataset's documents."""
    dataset = await find_dataset(dataset_id, f"You don't own the dataset {dataset_id}. ")
    ids = [document_id.strip() for document_id in request.args.get("doc_ids", "").split(",") if document_id.strip()]
    return respond.reply({"summary": await parts().session.read(metadata_service.summary, tenant_id(), [dataset.id], ids or None)})


@api.route("POST", "/datasets/<dataset_id>/metadata/update", body=schema.MetadataChange, data=schema.MetadataChanged)
async def update_metadata(dataset_id: str) -> Response:
    """Change the metadata of several documents."""
    return await _change(dataset_id, f"You don't own the dataset {dataset_id}. ")


@api.route("PATCH", "/datasets/<dataset_id>/documents/metadatas", body=schema.MetadataChange, data=schema.MetadataChanged)
async def patch_metadata(dataset_id: str) -> Response:
    """Change the metadata of several documents."""
    return await _change(dataset_id, f"You don't own the dataset {dataset_id}.")


@api.route("GET", "/datasets/<dataset_id>/metadata/config", "/datasets/<dataset_id>/auto_metadata", data=dataset_schema.MetadataConfig)
async def get_metadata_config(dataset_id: str) -> Response:
    """Get the metadata keys of a dataset."""
    dataset = await owned(dataset_id)
    return respond.reply({name: dataset.parser_config.get(name) or [] for name in dataset_schema.MetadataConfig.model_fields})


@api.route(
    "PUT", "/datasets/<dataset_id>/metadata/config", "/datasets/<dataset_id>/auto_metadata",
    body=dataset_schema.MetadataConfig, data=dataset_schema.MetadataConfig,
)  # fmt: skip
async def put_metadata_config(dataset_id: str) -> Response:
    """Set the metadata keys of a dataset."""
    config = (await strict(dataset_schema.MetadataConfig)).model_dump()
    dataset = await owned(dataset_id)
    if await parts().session.write(dataset_service.merge_config, tenant_id(), dataset.id, config) is None:
        raise lacks_permission(dataset_id)
    return respond.reply(config)


@api.route("PUT", "/datasets/<dataset_id>/documents/<document_id>/metadata/config", body=schema.DocumentMetadataConfig, data=dict[str, Any])
async def put_document_metadata_config(dataset_id: str, document_id: str) -> Response:
    """Set the metadata config of a document."""
    body = await tolerant()
    dataset = await find_dataset(dataset_id, "you don't own the dataset")
    document = await parts().session.read(document_service.get, tenant_id(), document_id.replace("-", ""))
    if document is None or document.dataset_id != dataset.id:
        raise ApiError(102, f"document {document_id} not found in dataset {dataset_id}", 404)
    if "metadata" not in body:
        raise ApiError(101, "metadata is required")
    changed = await parts().session.write(document_service.merge_config, document.id, {"metadata": body["metadata"]})
    if changed is None:
        raise ApiError(102, f"document {document_id} not found in dataset {dataset_id}", 404)
    return respond.reply(document_wire.raw(changed))


async def _change(dataset_id: str, not_owned: str) -> Response:
    dataset = await find_dataset(dataset_id, not_owned)
    body = await tolerant()
    selector = body.get("selector") or {}
    if not isinstance(selector, dict):
        raise ApiError(102, "selector must be an object.")
    updates, deletes = body.get("updates") or [], body.get("deletes") or []
    if not isinstance(updates, list) or not isinstance(deletes, list):
        raise ApiError(102, "updates and deletes must be lists.")
    condition = selector.get("metadata_condition") or {}
    if not isinstance(condition, dict):
        raise ApiError(102, "metadata_condition must be an object.")
    check_condition(condition)
    ids = selector.get("document_ids")
    if ids is not None and not isinstance(ids, list):
        raise ApiError(102, "document_ids must be a list.")
    if not all(_has_key(item) and "value" in item for item in updates):
        raise ApiError(102, "Each update requires key and value.")
    if not all(_has_key(item) for item in deletes):
        raise ApiError(102, "Each delete requires key.")
    wanted = None if ids is None else [str(document_id) for document_id in ids]
    if wanted:
        found = await parts().session.read(document_service.get_many, dataset.id, wanted)
        unknown = [document_id for document_id in wanted if document_id not in found]
        if unknown:
            raise ApiError(102, f"These documents do not belong to dataset {dataset_id}: {shown_ids(unknown)}", 404)
    change = metadata_service.change
    updated, matched = await parts().session.write(change, tenant_id(), dataset.id, wanted, condition, updates, deletes)
    return respond.reply({"updated": updated, "matched_docs": matched})


def _has_key(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("key"), str) and bool(item["key"])
