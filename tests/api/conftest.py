"""A server over a real database, a real blob folder and the in-memory chunk store; embeddings are counted words."""

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from pydantic import TypeAdapter
from quart import Response
from werkzeug.exceptions import HTTPException

from api.app import Application, create_app
from api.ingest_records import DatabaseRecords
from api.parts import Lanes, Parts, open_client
from db.services import tenant_service
from db.session import Session
from rag.llm.model_directory import bundled_model_path
from rag.llm.registry import ModelSpec, Registry
from rag.llm.transport import Transport
from rag.nlp.tokenize import chunk_terms, terms
from rag.settings import Settings
from rag.store.blobs import LocalBlobStore
from rag.store.memory import MemoryStore
from rag.threads import Lane
from rag.types import Chunk, ChunkSelector

UNKNOWN = "0" * 32
MODEL = "all-MiniLM-L6-v2@Local"
WORKER = "test worker"


class CountedWords:
    """An embedder whose vectors count hashed words. `meanwhile` happens while documents are embedded."""

    dimension = 64
    tokenizer_path = bundled_model_path() / "tokenizer.json"

    def __init__(self, space: str, meanwhile: Callable[[], Awaitable[Any]] | None = None) -> None:
        self.space = space
        self._meanwhile = meanwhile

    async def embed_query(self, text: str) -> np.ndarray:
        vector = np.full(self.dimension, 1e-6, np.float32)
        for term in terms(text):
            vector[zlib.crc32(term.encode()) % self.dimension] += 1
        return vector / np.linalg.norm(vector)

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        if self._meanwhile is not None:
            await self._meanwhile()
        return np.stack([await self.embed_query(text) for text in texts])

    def trust(self, text: str) -> float:
        return 1.0


class Models(Registry):
    """The real registry, but that opening a model loads nothing. `meanwhile` is for tests of what happens beside an embedding."""

    meanwhile: Callable[[], Awaitable[Any]] | None = None

    def embedder(self, name: str | None = None) -> CountedWords:
        return CountedWords(self.resolve(name or self.default_embedding, "embedding").identifier, self.meanwhile)


@dataclass
class Answer:
    """What came back."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def outcome(self) -> tuple[int, int, str]:
        """Body code, status, message."""
        return self.body["code"], self.status, self.body.get("message", "")

    @property
    def data(self) -> Any:
        """The data of a success."""
        assert (self.status, self.body["code"]) == (200, 0), self.body
        return self.body.get("data")


@dataclass
class Server:
    """A server with two tenants. Calls are the first one's unless a key is given; successes are held against the documentation."""

    app: Application
    parts: Parts
    tenant: str
    key: str
    other_tenant: str
    other_key: str
    records: DatabaseRecords = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.app.test_client()
        self.records = DatabaseRecords(self.parts.session, self.parts.store, self.parts.lanes.write)

    async def call(self, method: str, path: str, json: Any = None, *, key: str | None = None, **more: Any) -> Answer:
        headers = {"Authorization": f"Bearer {key or self.key}"} | more.pop("headers", {})
        path = path if path.startswith(("http", "/openapi", "/docs", "/api")) else f"/api/v1{path}"
        if json is not None:
            more |= {"data": orjson.dumps(json)}
            headers.setdefault("Content-Type", "application/json")
        response = await self.client.open(path, method=method, headers=headers, **more)
        return await self.answer(method, path, response)

    async def answer(self, method: str, path: str, response: Response) -> Answer:
        raw = await response.get_data()
        is_json = response.content_type == "application/json"
        answer = Answer(
            response.status_code, orjson.loads(raw) if is_json else raw, {name.lower(): value for name, value in response.headers.items()}
        )
        if is_json and answer.status == 200:
            self._check(method, path, answer.body)
        return answer

    def _check(self, method: str, path: str, body: Any) -> None:
        try:
            endpoint, _ = self.app.url_map.bind("x").match(path.partition("?")[0].rstrip("/"), method=method)
        except HTTPException:
            return
        spec = self.app.specs[endpoint]
        if spec.data is None or spec.kind not in ("R", "J", "D"):
            return
        if spec.kind == "D":
            TypeAdapter(spec.data).validate_python(body)
        elif "data" in body:
            TypeAdapter(spec.data).validate_python(body["data"])

    async def dataset(self, name: str = "facts", key: str | None = None, **fields: Any) -> str:
        return (await self.call("POST", "/datasets", {"name": name, **fields}, key=key)).data["id"]

    async def upload(self, dataset_id: str, *files: tuple[str, bytes], key: str | None = None, **more: Any) -> Answer:
        body, content_type = multipart(*(("file", name, content) for name, content in files))
        path = f"/datasets/{dataset_id}/documents"
        return await self.call("POST", path, key=key, data=body, headers={"Content-Type": content_type}, **more)

    async def document(self, dataset_id: str, name: str = "water.txt", content: bytes = b"Water boils.\nIron melts.") -> str:
        return (await self.upload(dataset_id, (name, content))).data[0]["id"]

    async def parsed(self, dataset_id: str, name: str = "water.txt", content: bytes = b"Water boils.\nIron melts.") -> str:
        document_id = await self.document(dataset_id, name, content)
        (await self.call("POST", f"/datasets/{dataset_id}/chunks", {"document_ids": [document_id]})).data  # noqa: B018
        await self.work()
        return document_id

    async def listed(self, dataset_id: str, document_id: str) -> dict[str, Any]:
        return (await self.call("GET", f"/datasets/{dataset_id}/documents?id={document_id}")).data["docs"][0]

    async def work(self) -> int:
        """Do all tasks that are due, a line of the file a chunk; how many there were."""
        done = 0
        while (task := await self.records.claim(WORKER, 60)) is not None:
            done += 1
            if task.kind == "purge":
                self.parts.store.delete(task.tenant_id, ChunkSelector(document_ids=(task.document_id,)))
                self.parts.blobs.delete(task.blob_key)
                await self.records.finish(task, WORKER, chunk_count=0, token_count=0, message="")
                continue
            if task.kind == "rename":
                await self.records.rename(task)
                await self.records.finish(task, WORKER, chunk_count=0, token_count=0, message="")
                continue
            if task.kind in ("sweep", "drop"):
                dropped = task.kind == "drop"
                below = task.version + (not dropped)
                old = ChunkSelector(document_ids=(task.document_id,), versions_below=below, with_added=dropped)
                self.parts.store.delete(task.tenant_id, old)
                await self.records.finish(task, WORKER, chunk_count=0, token_count=0, message="")
                continue
            chunks = self.chunks_of(task)
            embedder = self.parts.models.embedder(task.embedding_model)
            vectors = await embedder.embed_documents([chunk.content for chunk in chunks])
            self.parts.store.put(task.tenant_id, chunks, vectors, embedder.space)
            tokens = sum(len(chunk.content.split()) for chunk in chunks)
            await self.records.finish(task, WORKER, chunk_count=len(chunks), token_count=tokens, message="Task done (0.1 s)")
        return done

    def chunks_of(self, task: Any) -> list[Chunk]:
        with self.parts.blobs.open(task.blob_key) as file:
            lines = file.read().decode().splitlines()
        return [
            Chunk(
                f"{zlib.crc32(f'{task.document_id}{task.version}'.encode()):08x}{position:08x}",
                task.dataset_id, task.document_id, task.document_name, line, chunk_terms(task.document_name, (), line),
                version=task.version, position=position, positions=((1, 0, 10, position, position + 1),), available=task.available,
            )
            for position, line in enumerate(lines)
        ]  # fmt: skip


def multipart(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, str]:
    """A multipart body of (name, file name or None, content), and its content type."""
    pieces = []
    for name, filename, content in parts:
        extra = "" if filename is None else f'; filename="{filename}"'
        pieces += [b"--frontier\r\n", f'Content-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode(), content, b"\r\n"]
    return b"".join([*pieces, b"--frontier--\r\n"]), "multipart/form-data; boundary=frontier"


@pytest.fixture
def server_settings(tmp_path: Path) -> dict[str, Any]:
    """Settings a test may change before the server opens."""
    return {"data_dir": tmp_path}


@pytest.fixture
async def api(tmp_path: Path, server_settings: dict[str, Any]) -> AsyncIterator[Server]:
    settings = Settings(**server_settings)
    lanes = Lanes(**{name: Lane(name, 4, 1000) for name in ("db", "search", "write", "blob", "model", "rerank", "ingest_model")})
    session = Session(tmp_path / "test.sqlite3", lanes.db)
    await lanes.db.run(session.create_tables)
    specs = [
        ModelSpec("other", "Sim", "embedding", base_url="http://localhost:9/v1", dimension=64),
        ModelSpec("reader", "Sim", "rerank", base_url="http://localhost:9/v1"),
    ]
    async with open_client() as client:
        models = Models(
            specs,
            {"friend": MODEL},
            Transport(client),
            query_lane=lanes.model,
            document_lane=lanes.ingest_model,
            rerank_lane=lanes.rerank,
            cache_dir=tmp_path / "cache",
        )
        parts = Parts(settings, lanes, session, MemoryStore(), LocalBlobStore(tmp_path / "blobs"), models)
        tenants = [await session.write(tenant_service.ensure_tenant, name) for name in ("one", "two")]
        keys = [await session.write(tenant_service.create_key, tenant.id) for tenant in tenants]
        yield Server(create_app(parts), parts, tenants[0].id, keys[0].token, tenants[1].id, keys[1].token)
    for lane in lanes.all:
        lane.close()
