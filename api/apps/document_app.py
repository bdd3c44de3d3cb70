"""Documents of a dataset: /datasets/{d}/documents."""

import unicodedata
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from typing import Any, BinaryIO
from urllib.parse import quote

from quart import Response, request
from werkzeug.http import dump_options_header

from api import chunk_edits, document_wire, file_types, respond
from api.body import check_name, field_error, id_list, order_of, page_of, shown_ids, strict, tolerant, validated
from api.condition import check_condition
from api.context import parts, tenant_id, uploader
from api.documents import find_dataset, json_object_argument
from api.errors import ApiError
from api.intake import Intake
from api.purge import purge
from api.routes import Routes
from api.schema import document as schema
from api.schema import parser_config
from db.services import document_service, metadata_service, tenant_service
from db.services.dataset_service import DatasetRecord
from db.services.document_service import DocumentQuery, DocumentRecord
from rag.errors import Conflict, NotFound
from rag.threads import Lane

api = Routes("document")

SENT_BYTES = 256 << 10
UNSUPPORTED_UPLOADS = ("web", "empty")


@api.route(
    "POST",
    "/datasets/<dataset_id>/documents",
    stream=True,
    content_type="multipart/form-data",
    body=schema.UploadForm,
    query=schema.UploadQuery,
    data=list[schema.Uploaded | dict[str, Any]],
)
async def upload_documents(dataset_id: str) -> Response:
    """Upload files; each becomes a document."""
    dataset = await find_dataset(dataset_id, f"Can't find the dataset with ID {dataset_id}!")
    kind = (request.args.get("type") or "local").lower()
    if kind in UNSUPPORTED_UPLOADS:
        raise ApiError(101, f"uploads of type {kind} are not supported")
    if kind != "local":
        raise ApiError(101, '`type` must be one of "local", "web", or "empty".')
    async with Intake(parts(), uploader(), tenant_id(), dataset) as intake:
        await intake.receive()
        records = await intake.keep()
    raw = request.args.get("return_raw_files", "").lower() == "true"
    data = [document_wire.raw(record) if raw else document_wire.uploaded(record) for record in records]
    if intake.refused:
        message = "\n".join(f"{name}: This type of file has not been supported yet!" for name in intake.refused)
        raise ApiError(500, message, 415, **({"data": data} if data else {}))
    return respond.reply(data)


@api.route("GET", "/datasets/<dataset_id>/documents", kind="J", query=schema.DocumentList, data=schema.DocumentPage | schema.DocumentFilter)
async def list_documents(dataset_id: str) -> Response:
    """List documents."""
    dataset = await find_dataset(dataset_id, f"You don't own the dataset {dataset_id}. ")
    query = await _query(dataset)
    session = parts().session
    if request.args.get("type") == "filter":
        facets = await session.read(document_service.facets, dataset.id, query)
        return respond.success(await parts().lanes.search.run(document_wire.facets, facets))
    total, records = await session.read(document_service.search, dataset.id, query)
    tenant = await session.read(tenant_service.get_tenant, tenant_id())
    since, until = _milliseconds("create_time_from"), _milliseconds("create_time_to")
    shown = [record for record in records if since <= record.create_time and (not until or record.create_time <= until)]
    return respond.success({"total": total, "docs": [document_wire.item(record, tenant.name if tenant else "") for record in shown]})


@api.route("GET", "/datasets/<dataset_id>/documents/<document_id>", stream=True, reply_type="application/octet-stream", data=bytes)
async def download_document(dataset_id: str, document_id: str) -> Response:
    """Download a document's file."""
    document = await parts().session.read(document_service.get, tenant_id(), document_id)
    if document is None:
        raise ApiError(102, "document not found", 404)
    if document.dataset_id != dataset_id.replace("-", ""):
        raise ApiError(102, f"The dataset not own the document {document_id}.", 404)
    if document.size == 0:
        raise ApiError(102, "This file is empty.")
    try:
        file = await parts().lanes.blob.run(parts().blobs.open, document.location)
    except NotFound as error:
        raise ApiError(102, "document not found", 404) from error
    headers = {"Content-Disposition": attachment(document.name), "Content-Length": str(document.size), "X-Content-Type-Options": "nosniff"}
    return Response(_pieces(file, parts().lanes.blob), headers=headers, content_type=file_types.media_type(document.name))


@api.route("PATCH PUT", "/datasets/<dataset_id>/documents/<document_id>", body=schema.DocumentUpdate, data=schema.Document)
async def update_document(dataset_id: str, document_id: str) -> Response:
    """Change a document; keys that are absent stay."""
    body = await tolerant()
    if "name" in body and body["name"] is None:
        raise ApiError(102, field_error("name", "Input should be a valid string", None))
    dataset = await find_dataset(dataset_id, "you don't own the dataset")
    document = await parts().session.read(document_service.get, tenant_id(), document_id)
    if document is None or document.dataset_id != dataset.id:
        raise ApiError(102, "the dataset doesn't own the document", 404)
    change = validated(schema.DocumentUpdate, body, code=102)
    _check_immutable(document, change)
    await _check_name(document, change)
    _check_method(document, change)
    changed = await _apply(document, change)
    if changed is None:
        raise ApiError(102, "the dataset doesn't own the document", 404)
    return respond.reply(document_wire.document(changed))


@api.route("DELETE", "/datasets/<dataset_id>/documents", body=schema.DocumentDelete, data=schema.DocumentsDeleted)
async def delete_documents(dataset_id: str) -> Response:
    """Delete documents with their chunks and files."""
    body = await strict(schema.DocumentDelete)
    dataset = await find_dataset(dataset_id, f"You don't own the dataset {dataset_id}. ")
    if not body.ids and not body.delete_all:
        raise ApiError(102, f"should either provide doc ids or set delete_all(true), dataset: {dataset_id}. ")
    if body.ids and body.delete_all:
        raise ApiError(102, f"should not provide both doc ids and delete_all(true), dataset: {dataset_id}. ")
    if body.ids:
        found = await parts().session.read(document_service.get_many, dataset.id, body.ids)
        unknown = [document_id for document_id in body.ids if document_id not in found]
        if unknown:
            raise ApiError(102, f"These documents do not belong to dataset {dataset_id} or Document not found: {shown_ids(unknown)}", 404)
    purges = await parts().session.write(document_service.delete, tenant_id(), dataset.id, body.ids or None)
    await purge(parts(), purges)
    return respond.reply({"deleted": len(purges)})


def attachment(name: str) -> str:
    """A `Content-Disposition` for saving under that name; a name that is not ASCII is given in both forms (RFC 6266)."""
    visible = "".join(character for character in name if unicodedata.category(character) != "Cc")
    if visible.isascii():
        return dump_options_header("attachment", {"filename": visible})
    plain = unicodedata.normalize("NFKD", visible).encode("ascii", "ignore").decode()
    return dump_options_header("attachment", {"filename": plain, "filename*": f"UTF-8''{quote(visible, safe='')}"})


async def _pieces(file: BinaryIO, lane: Lane) -> AsyncIterator[bytes]:
    """The file's content; runs when the request's context is gone."""
    with closing(file):
        while piece := await lane.run(file.read, SENT_BYTES):
            yield piece


# ---------------------------------------------------------------------------------------------------- list
async def _query(dataset: DatasetRecord) -> DocumentQuery:
    page, page_size = page_of(request.args)
    orderby, descending = order_of(request.args)
    ids = id_list("ids")
    types = tuple(value for value in request.args.getlist("types") if value)
    unknown = [value for value in types if value not in schema.TYPES]
    if unknown:
        raise ApiError(102, f"Invalid filter conditions: {', '.join(unknown)} type{'s' if len(unknown) > 1 else ''}")
    runs = _runs()
    wanted: tuple[str, ...] | None = tuple(ids) if ids else None
    one = request.args.get("id")
    name = request.args.get("name")
    asked = [*ids, one] if one else ids
    found = await parts().session.read(document_service.get_many, dataset.id, asked) if asked else {}
    for document_id in asked:
        if document_id not in found:
            raise ApiError(102, f"you don't own the document {document_id}", 404)
    if name and await parts().session.read(document_service.find_name, dataset.id, name) is None:
        raise ApiError(102, f"you don't own the document {name}", 404)
    matching = await _by_metadata(dataset)
    if one:
        wanted = (one,)
    elif matching is not None:
        wanted = matching if wanted is None else tuple(set(wanted) & set(matching))
    return DocumentQuery(
        ids=wanted, name=name, keywords=request.args.get("keywords", ""), types=types, runs=runs,
        suffixes=tuple(value for value in request.args.getlist("suffix") if value),
        page=page, page_size=page_size, orderby=orderby, descending=descending,
    )  # fmt: skip


def _runs() -> tuple[str, ...]:
    given = [value for name in ("run", "run_status", "run[]") for value in request.args.getlist(name) if value]
    named = [schema.RUNS[int(value)] if value in {"0", "1", "2", "3", "4"} else value.upper() for value in given]
    unknown = [value for value, name in zip(given, named, strict=True) if name not in schema.RUNS]
    if unknown:
        raise ApiError(102, f"Invalid filter run status conditions: {', '.join(unknown)}")
    return tuple(named)


async def _by_metadata(dataset: DatasetRecord) -> tuple[str, ...] | None:
    condition = json_object_argument("metadata_condition", with_raw=True)
    wanted = json_object_argument("metadata")
    if condition:
        check_condition(condition)
    empty = request.args.get("return_empty_metadata", "").lower() == "true"
    if not (condition or wanted or empty):
        return None
    select = metadata_service.select
    return tuple(await parts().session.read(select, tenant_id(), dataset.id, condition=condition, wanted=wanted, empty=empty))


def _milliseconds(name: str) -> int:
    value = request.args.get(name, "")
    return int(value) if value.lstrip("-").isdecimal() else 0


# ---------------------------------------------------------------------------------------------------- change
def _check_immutable(document: DocumentRecord, change: schema.DocumentUpdate) -> None:
    for name in ("chunk_count", "token_count", "progress"):
        value = getattr(change, name)
        if value is not None and value != getattr(document, name):
            raise ApiError(102, f"can't change `{name}`")


async def _check_name(document: DocumentRecord, change: schema.DocumentUpdate) -> None:
    name = change.name
    if name is None or name == document.name:
        return
    if len(name.encode("utf-8", "surrogatepass")) > document_service.NAME_BYTES:
        raise ApiError(101, "File name must be 255 bytes or less.")
    check_name(name)
    if file_types.extension_of(name) != file_types.extension_of(document.name):
        raise ApiError(101, "The extension of file can't be changed")
    other = await parts().session.read(document_service.find_name, document.dataset_id, name)
    if other is not None and other.id != document.id:
        raise _duplicate_name()


def _duplicate_name() -> ApiError:
    return ApiError(102, "Duplicated document name in the same dataset.", 409)


def _check_method(document: DocumentRecord, change: schema.DocumentUpdate) -> None:
    if change.chunk_method == "":
        raise ApiError(102, "`chunk_method` (empty string) is not valid")
    forced = file_types.forced_method(document.name)
    if change.chunk_method not in (None, document.chunk_method) and forced not in (None, change.chunk_method):
        raise ApiError(102, "the automatically detected parser type cannot be changed")


async def _apply(document: DocumentRecord, change: schema.DocumentUpdate) -> DocumentRecord | None:
    values: dict[str, Any] = {}
    if change.meta_fields is not None:
        values["meta_fields"] = change.meta_fields
    if change.enabled is not None:
        values["enabled"] = bool(change.enabled)
    if change.name is not None and change.name != document.name:
        values["name"] = change.name
    config = parser_config.sent(change.parser_config)
    method, pipeline = change.chunk_method or document.chunk_method, change.pipeline_id or document.pipeline_id
    again = (method, pipeline) != (document.chunk_method, document.pipeline_id)
    if again:
        values |= {"chunk_method": method, "pipeline_id": pipeline}
    if config:
        values["parser_config"] = _config_after(document.parser_config, config)
    elif again:
        values["parser_config"] = parser_config.method_table(method)
    seen_by_worker = bool(values.keys() & {"name", "enabled", "parser_config"})
    try:
        if again:
            changed, drops = await parts().session.write(document_service.reset, document.id, values)
        else:
            changed = await parts().session.write(document_service.update, document.id, values, restart=seen_by_worker)
    except Conflict as error:
        raise _duplicate_name() from error
    if again:
        await chunk_edits.drop(parts(), tenant_id(), drops)
    elif changed is not None:
        await chunk_edits.follow(parts(), changed, named=change.name is not None, switched=change.enabled is not None)
    return changed


def _config_after(stored: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    config = parser_config.merged(stored, sent)
    if "raptor" not in sent:
        config.pop("raptor", None)
    return config
