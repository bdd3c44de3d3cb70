"""Datasets: /datasets."""

from typing import Any

from quart import Response

from api import model_names, respond
from api.body import field_error, id_list, shown_ids, strict, strict_query
from api.context import parts, tenant_id
from api.errors import ApiError
from api.purge import purge
from api.routes import Routes
from api.schema import dataset as schema
from api.schema import parser_config
from api.schema.base import HEX_ID
from db.services import dataset_service, tenant_service
from db.services.dataset_service import DatasetQuery, DatasetRecord
from rag.errors import Conflict

api = Routes("dataset")

PARSING_STATES = {
    "UNSTART": "unstart_count", "RUNNING": "running_count", "CANCEL": "cancel_count", "DONE": "done_count", "FAIL": "fail_count",
}  # fmt: skip
EXT_COLUMNS = {"language": str, "similarity_threshold": float, "vector_similarity_weight": float}


@api.route("POST", "/datasets", body=schema.DatasetCreate, data=schema.Dataset)
async def create_dataset() -> Response:
    """Create a dataset."""
    body = await strict(schema.DatasetCreate, model_names.EMBEDDING_CONTEXT)
    models = parts().models
    name = body.embedding_model or models.default_embedding
    model_names.check_embedding(name)
    config = parser_config.created(body.chunk_method, body.parser_config, models.default_chat)
    values = body.model_dump(include={"name", "avatar", "description", "permission", "chunk_method", "pipeline_id"})
    values |= _from_ext(body) | {"embedding_model": name, "parser_config": config | _metadata_keys(body.auto_metadata_config)}
    return respond.reply(wire(await parts().session.write(dataset_service.create, tenant_id(), values)))


@api.route("PUT", "/datasets/<dataset_id>", body=schema.DatasetUpdate, data=schema.DatasetChanged)
async def update_dataset(dataset_id: str) -> Response:
    """Change a dataset; keys that are absent stay."""
    dataset_id = hex_id(dataset_id)
    body = await strict(schema.DatasetUpdate, model_names.EMBEDDING_CONTEXT)
    if not body.model_fields_set:
        raise ApiError(102, "no properties were modified")
    dataset = await owned(dataset_id)
    await _check_name_is_free(dataset, body)
    if body.embedding_model:
        model_names.check_embedding(body.embedding_model)
    if body.pagerank and (await parts().lanes.search.run(parts().store.health))["type"] != "elasticsearch":
        raise ApiError(102, "'pagerank' can only be set when doc_engine is elasticsearch")
    try:
        changed = await parts().session.write(dataset_service.update, tenant_id(), dataset_id, _changes(dataset, body))
    except Conflict as error:
        raise _name_taken(body.name) from error
    if changed is None:
        raise lacks_permission(dataset_id)
    return respond.reply(wire(changed) | {"connectors": changed.connectors})


@api.route("GET", "/datasets", query=schema.DatasetList, data=list[schema.DatasetItem] | dict[str, Any])
async def list_datasets() -> Response:
    """List datasets."""
    ids = id_list("ids", commas=True)
    query = strict_query(schema.DatasetList, {"ids": ids} if ids else {}, drop=("ids",))
    if query.id and query.ids:
        raise ApiError(102, "id and ids can not be given together")
    wanted = DatasetQuery(
        ids=await _wanted_ids(query), name=query.name, chunk_method=query.ext.parser_id, keywords=query.ext.keywords,
        page=query.page, page_size=query.page_size, orderby=query.orderby, descending=query.desc,
    )  # fmt: skip
    tenant = await parts().session.read(tenant_service.get_tenant, tenant_id())
    nickname = "" if tenant is None else tenant.name
    total, records = await parts().session.read(dataset_service.search, tenant_id(), wanted)
    if query.type == "filter":
        owners = [{"id": tenant_id(), "label": nickname, "count": total}] if total else []
        return respond.reply({"filter": {"owner": owners}, "total": total})
    items = [wire(record) | _beside(record, nickname) for record in records]
    if query.include_parsing_status:
        counts = await parts().session.read(dataset_service.run_counts, [record.id for record in records])
        for item in items:
            item["parsing_status"] = {name: counts.get(item["id"], {}).get(run, 0) for run, name in PARSING_STATES.items()}
    return respond.reply(items, total_datasets=total)


@api.route("GET", "/datasets/<dataset_id>", data=schema.DatasetDetail)
async def get_dataset(dataset_id: str) -> Response:
    """Get a dataset, with the size of its files."""
    dataset = await owned(dataset_id)
    size = await parts().session.read(dataset_service.size_bytes, dataset.id)
    return respond.reply(wire(dataset) | {"size": size, "connectors": dataset.connectors})


@api.route("DELETE", "/datasets", body=schema.DatasetDelete, data=schema.Deleted)
async def delete_datasets() -> Response:
    """Delete datasets with their documents, chunks and files."""
    body = await strict(schema.DatasetDelete)
    if not body.ids and not body.delete_all:
        return respond.reply({"success_count": 0})
    if body.ids:
        found = await parts().session.read(dataset_service.get_many, tenant_id(), body.ids)
        unknown = [dataset_id for dataset_id in body.ids if dataset_id not in found]
        if unknown:
            raise ApiError(102, f"User '{tenant_id()}' lacks permission for datasets: '{shown_ids(unknown)}'", 404)
    number, purges = await parts().session.write(dataset_service.delete, tenant_id(), body.ids or None)
    await purge(parts(), purges)
    return respond.reply({"success_count": number})


def wire(record: DatasetRecord) -> dict[str, Any]:
    """A dataset as callers see it."""
    return {
        "id": record.id,
        "name": record.name,
        "avatar": record.avatar,
        "description": record.description,
        "tenant_id": record.tenant_id,
        "created_by": record.created_by,
        "language": record.language,
        "permission": record.permission,
        "embedding_model": record.embedding_model,
        "tenant_embd_id": model_names.embedding_id(record.embedding_model),
        "chunk_method": record.chunk_method,
        "pipeline_id": record.pipeline_id,
        "parser_config": record.parser_config,
        "document_count": record.document_count,
        "chunk_count": record.chunk_count,
        "token_num": max(0, record.token_num),
        "pagerank": record.pagerank,
        "similarity_threshold": record.similarity_threshold,
        "vector_similarity_weight": record.vector_similarity_weight,
        "status": "1",
        **respond.times(record.create_time, record.update_time),
        **BACKGROUND,
    }


BACKGROUND = {f"{kind}_task_{what}": None for kind in schema.BACKGROUND_KINDS for what in ("id", "finish_at")}


def hex_id(dataset_id: str) -> str:
    """The id without hyphens. Raises `ApiError` (101) for what is no UUID."""
    plain = dataset_id.replace("-", "").lower()
    if HEX_ID.fullmatch(plain) is None:
        raise ApiError(101, field_error("dataset_id", "Invalid UUID format", dataset_id))
    return plain


async def owned(dataset_id: str) -> DatasetRecord:
    """The caller's dataset. Raises `ApiError` (102/404) with the lacks-permission text."""
    dataset = await parts().session.read(dataset_service.get, tenant_id(), dataset_id.replace("-", ""))
    if dataset is None:
        raise lacks_permission(dataset_id)
    return dataset


def lacks_permission(id_or_name: str) -> ApiError:
    """The error for a dataset that is unknown or somebody else's."""
    return ApiError(102, f"User '{tenant_id()}' lacks permission for dataset '{id_or_name}'", 404)


async def _wanted_ids(query: schema.DatasetList) -> tuple[str, ...] | None:
    session = parts().session
    ids = tuple(query.ids) or ((query.id,) if query.id else None)
    if ids is not None:
        found = await session.read(dataset_service.get_many, tenant_id(), ids)
        for dataset_id in ids:
            if dataset_id not in found:
                raise lacks_permission(dataset_id)
    if query.name and await session.read(dataset_service.find_name, tenant_id(), query.name) is None:
        raise lacks_permission(query.name)
    if query.ext.owner_ids and tenant_id() not in query.ext.owner_ids:
        return ()
    return ids


async def _check_name_is_free(dataset: DatasetRecord, body: schema.DatasetUpdate) -> None:
    if body.name:
        other = await parts().session.read(dataset_service.find_name, tenant_id(), body.name)
        if other is not None and other.id != dataset.id:
            raise _name_taken(body.name)


def _name_taken(name: str) -> ApiError:
    return ApiError(102, f"Dataset name '{name}' already exists", 409)


def _changes(dataset: DatasetRecord, body: schema.DatasetUpdate) -> dict[str, Any]:
    columns = {"name", "avatar", "description", "permission", "chunk_method", "pipeline_id", "pagerank", "language", "connectors"}
    values = body.model_dump(include=columns, exclude_unset=True) | _from_ext(body)
    if body.embedding_model:
        values["embedding_model"] = body.embedding_model
    config = dict(dataset.parser_config)
    if body.parser_config is not None and body.parser_config.model_fields_set:
        config = parser_config.updated(config, body.parser_config)
    elif values.get("chunk_method", dataset.chunk_method) != dataset.chunk_method:
        config = parser_config.method_table(values["chunk_method"])
    config |= _metadata_keys(body.auto_metadata_config)
    return values if config == dataset.parser_config else values | {"parser_config": config}


def _metadata_keys(config: schema.MetadataConfig | None) -> dict[str, Any]:
    return {} if config is None else config.model_dump()


def _from_ext(body: schema.DatasetBody) -> dict[str, Any]:
    return {name: body.ext[name] for name, kind in EXT_COLUMNS.items() if isinstance(body.ext.get(name), kind)}


def _beside(record: DatasetRecord, nickname: str) -> dict[str, Any]:
    return {"nickname": nickname, "tenant_avatar": None, "embedding_model_name": record.embedding_model.partition("@")[0]}
