"""A server for the chat routes: everything real on files of the test, the models a simulated vendor behind real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from quart.typing import TestClientProtocol

from api.app import Application, create_app
from api.parts import Parts, open_parts
from db.models import Dataset, Document, name_key
from db.services import metadata_rows, tenant_service
from load.rerank_simulator import WIRES
from load.vendor_simulator import Behaviour, VendorSimulator
from rag.nlp.tokenize import chunk_terms
from rag.settings import ModelSettings, Settings
from rag.types import Chunk

MODEL = "chatty@Sim"
EMBEDDING = "vectors@Sim"
NO_MODEL = "extractive@Millrace"
WATER = "Water boils at 100 °C at sea level. On high mountains it boils at lower temperatures."
IRON = "Iron melts at 1538 °C. The Hittites were the first to smelt it."


@dataclass
class Server:
    """A server with a tenant, a second one, and a vendor. `call` asks as the first tenant."""

    app: Application
    parts: Parts
    vendor: VendorSimulator
    tenant: str
    key: str
    other_tenant: str
    other_key: str
    client: TestClientProtocol = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.app.test_client()

    async def raw(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {key or self.key}", "Content-Type": "application/json"}
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        path = path if path.startswith("/v1/") else f"/api/v1{path}"
        return await self.client.open(path, method=method, headers=headers, data=data)

    async def call(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> tuple[int, dict[str, Any]]:
        response = await self.raw(method, path, body, key=key)
        return response.status_code, orjson.loads(await response.get_data())

    async def data(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.call(method, path, body)
        assert (status, answer["code"], answer["message"]) == (200, 0, "success"), answer
        return answer["data"]

    async def stream(self, path: str, body: Any) -> list[Any]:
        response = await self.raw("POST", path, body)
        assert response.status_code == 200, await response.get_data()
        return read_frames(await response.get_data())

    async def dataset(self, name: str, *contents: str, tenant: str = "", embedding: str = EMBEDDING, **meta: Any) -> str:
        """A dataset with a parsed document that has these chunks. Without contents it is an empty one."""
        tenant = tenant or self.tenant

        def rows() -> tuple[str, str]:
            dataset = Dataset.create(
                tenant_id=tenant,
                created_by=tenant,
                name=name,
                name_key=name_key(name),
                embedding_model=embedding,
                chunk_count=len(contents),
            )
            document = Document.create(
                tenant_id=tenant, dataset_id=dataset.id, created_by=tenant, name=f"{name}.md", name_key=name_key(f"{name}.md"),
                location="none", type="doc", meta_fields=meta, run="DONE",
            )  # fmt: skip
            metadata_rows.put([(document.id, dataset.id, meta)])
            return dataset.id, document.id

        dataset_id, document_id = await self.parts.session.write(rows)
        if contents:
            chunks = [
                Chunk(
                    f"{int(dataset_id[:8], 16) ^ number:016x}", dataset_id, document_id, f"{name}.md", text,
                    chunk_terms(f"{name}.md", ("Part",), text), version=1, position=number, headings=("Part",),
                )
                for number, text in enumerate(contents)
            ]  # fmt: skip
            embedder = self.parts.models.embedder(EMBEDDING)
            vectors = await embedder.embed_documents(list(contents))
            await self.parts.lanes.search.run(self.parts.store.put, tenant, chunks, vectors, embedder.space)
        return dataset_id

    async def chat(self, name: str = "assistant", **values: Any) -> str:
        return (await self.data("POST", "/chats", {"name": name, "similarity_threshold": 0.0, **values}))["id"]

    async def grounded_chat(self, name: str = "assistant", **values: Any) -> str:
        """A chat over water and iron."""
        return await self.chat(name, dataset_ids=[await self.dataset(f"{name} facts", WATER, IRON)], **values)

    def says(self, *words: str, **values: Any) -> None:
        """What the vendor's model answers from now on."""
        self.vendor.behaviour = Behaviour(words=words, **values)

    @property
    def prompts(self) -> list[list[dict[str, str]]]:
        """The messages of the chat calls that reached the vendor."""
        return [request.body["messages"] for request in self.vendor.requests if "messages" in request.body]


def read_frames(raw: bytes) -> list[Any]:
    """The JSON of each frame; `[DONE]` as it is."""
    lines = raw.decode().split("\n\n")
    assert lines[-1] == ""
    assert all(line.startswith("data:") and "\n" not in line for line in lines[:-1])
    return [line[5:] if line == "data:[DONE]" else orjson.loads(line[5:]) for line in lines[:-1]]


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Return when the condition holds, for what tells nobody that it is done; fail when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings a test may change before the server opens."""
    return {"data_dir": tmp_path / "data", "db_threads": 2, "search_threads": 2, "model_threads": 1, "ingest_workers": 0}


@pytest.fixture
def rerankers() -> tuple[str, ...]:
    """Providers of rerank models `m` that a test has, at the vendor's address: those of `load.rerank_simulator`."""
    return ()


@pytest.fixture
async def server(settings: dict[str, Any], rerankers: tuple[str, ...]) -> AsyncIterator[Server]:
    async with VendorSimulator().listen() as vendor:
        models = [
            ModelSettings(name="chatty", provider="Sim", kind="chat", base_url=vendor.base_url, timeout_seconds=5, default=True),
            ModelSettings(name="vectors", provider="Sim", kind="embedding", base_url=vendor.base_url, dimension=8, default=True),
        ] + [
            ModelSettings(name="m", provider=name, kind="rerank", base_url=vendor.base_url + WIRES[name].base, api_key_env="KEY")
            for name in rerankers
        ]
        async with open_parts(Settings(models=models, aliases={"alias": MODEL}, **settings), {"KEY": "sk-secret"}) as parts:
            await until(lambda: not parts.warmup.reason)
            vendor.arrived.clear()
            tenants = [await parts.session.write(tenant_service.ensure_tenant, name) for name in ("one", "two")]
            keys = [await parts.session.write(tenant_service.create_key, tenant.id) for tenant in tenants]
            yield Server(create_app(parts), parts, vendor, tenants[0].id, keys[0].token, tenants[1].id, keys[1].token)
