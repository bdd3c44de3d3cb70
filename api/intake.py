"""One upload request: files into the blob store, then all their documents in one transaction, or nothing at all."""

import asyncio
from types import TracebackType
from typing import Any

import orjson

from api import file_types
from api.body import check_name, request_body
from api.errors import ApiError
from api.parts import Parts
from api.upload import MultipartReader, Uploader
from db.models import new_id
from db.services import document_service, task_service
from db.services.dataset_service import DatasetRecord
from db.services.document_service import DocumentRecord, Upload
from db.services.task_service import Purge
from rag.errors import MillraceError, OutcomeUnknown

CONFIG_KEYS = ("table_column_mode", "table_column_roles")


class Intake:
    """Receives the files of the current request. Leaving the block without `keep` removes what was stored.

    Before a byte is stored a purge of its key is pledged in the database, so that a server that dies leaves no file behind
    that nobody owns: a worker keeps the pledge. `refused` names files of types that are not taken.
    """

    def __init__(self, parts: Parts, uploader: Uploader, tenant_id: str, dataset: DatasetRecord) -> None:
        self.refused: list[str] = []
        self._parts = parts
        self._uploader = uploader
        self._tenant_id = tenant_id
        self._dataset = dataset
        self._pledges: list[Purge] = []
        self._files: list[dict[str, Any]] = []
        self._fields: dict[str, str] = {}

    async def __aenter__(self) -> "Intake":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pledges:
            await asyncio.shield(self._undo())

    async def receive(self) -> None:
        """Store the request's files. Raises `ApiError` (101) when there is none, or one has no fit name."""
        reader = MultipartReader(request_body())
        seen = False
        while (part := await reader.next_part()) is not None:
            if part.filename is None:
                self._fields[part.name] = await reader.text()
            elif part.name == "file":
                seen = True
                await self._receive_file(part.filename, reader)
        if not seen:
            raise ApiError(101, "No file part!")

    async def keep(self) -> list[DocumentRecord]:
        """The documents of the files received, in order."""
        folder = "/".join(name for name in self._fields.get("parent_path", "").split("/") if name.strip(" ."))[:1024]
        config = dict(self._dataset.parser_config) | self._sent_config()
        uploads = [Upload(**file, folder=folder, pipeline_id=self._dataset.pipeline_id, parser_config=config) for file in self._files]
        if not uploads:
            return []
        records = await self._add(uploads)
        if records is None:
            raise ApiError(102, f"Can't find the dataset with ID {self._dataset.id}!", 404)
        return records

    async def _add(self, uploads: list[Upload]) -> list[DocumentRecord] | None:
        """The transaction that makes the documents, after which nothing is undone unless it was certainly not made.

        When the caller goes away it is made all the same, and when the database falls silent while committing nobody knows: the
        pledges then stand, if it was not, and a worker removes the files.
        """
        pledges, self._pledges = self._pledges, []
        try:
            records = await self._parts.session.write(document_service.add, self._tenant_id, self._dataset.id, uploads)
        except OutcomeUnknown:
            raise
        except MillraceError:
            self._pledges = pledges
            raise
        if records is None:
            self._pledges = pledges
        return records

    async def _receive_file(self, name: str, reader: MultipartReader) -> None:
        if not name:
            raise ApiError(101, "No file selected!")
        if len(name.encode()) > document_service.NAME_BYTES:
            raise ApiError(101, "File name must be 255 bytes or less.")
        check_name(name, "file")
        extension = file_types.extension_of(name)
        if extension not in file_types.TYPE_OF:
            self.refused.append(name)
            return
        pledge = await self._pledge()
        stored = await self._uploader.store(pledge.blob_key, reader.content(), self._extend)
        self._files.append({
            "pledge": pledge, "name": name, "size": stored.size, "content_hash": stored.digest,
            "type": file_types.TYPE_OF[extension], "suffix": extension,
            "chunk_method": file_types.forced_method(name) or self._dataset.chunk_method,
        })  # fmt: skip

    async def _pledge(self) -> Purge:
        document_id = new_id()
        # two digits of the id that change fast spread the files over 256 folders
        key = f"{self._tenant_id}/{document_id[6:8]}/{document_id}"
        pledge = Purge(new_id(), self._tenant_id, self._dataset.id, document_id, key, again=False)
        self._pledges.append(pledge)
        await self._parts.session.write(task_service.pledge, pledge)
        return pledge

    async def _extend(self) -> None:
        await self._parts.session.write(task_service.extend, self._pledges)

    def _sent_config(self) -> dict[str, Any]:
        try:
            config = orjson.loads(self._fields.get("parser_config") or "{}")
        except ValueError:
            raise ApiError(101, "`parser_config` must be valid JSON") from None
        if not isinstance(config, dict):
            raise ApiError(101, "`parser_config` must be an object")
        return {key: config[key] for key in CONFIG_KEYS if key in config}

    async def _undo(self) -> None:
        pledges = list(self._pledges)
        try:
            for pledge in pledges:
                await self._parts.lanes.blob.run(self._parts.blobs.delete, pledge.blob_key)
            await self._parts.session.write(task_service.purged, pledges)
        except MillraceError:
            return  # the pledges stand, a worker keeps them
