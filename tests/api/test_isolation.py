"""Another tenant's thing is exactly like an unknown one, on every route that names one."""

import re
from typing import Any

import pytest

from tests.api.conftest import Server, multipart

UNKNOWN = {"dataset_id": "a" * 32, "document_id": "b" * 32, "chunk_id": "c" * 16}

BODIES: dict[str, Any] = {
    "dataset.update_dataset": {"name": "x"},
    "document.update_document": {"name": "x.txt"},
    "document.delete_documents": {"ids": ["{document_id}"]},
    "parsing.start_parsing": {"document_ids": ["{document_id}"]},
    "parsing.stop_parsing": {"document_ids": ["{document_id}"]},
    "parsing.parse_documents": {"document_ids": ["{document_id}"]},
    "parsing.stop_documents": {"document_ids": ["{document_id}"]},
    "chunk.add_chunk": {"content": "x"},
    "chunk.switch_chunks": {"chunk_ids": ["{chunk_id}"], "available": False},
    "chunk.delete_chunks": {"chunk_ids": ["{chunk_id}"]},
    "chunk.update_chunk": {"content": "x"},
    "metadata.update_metadata": {"selector": {"document_ids": ["{document_id}"]}, "updates": [{"key": "a", "value": 1}]},
    "metadata.patch_metadata": {"selector": {"document_ids": ["{document_id}"]}, "updates": [{"key": "a", "value": 1}]},
    "metadata.put_metadata_config": {"metadata": []},
    "metadata.put_document_metadata_config": {"metadata": []},
}
BY_BODY = [
    ("POST", "/retrieval", {"dataset_ids": ["{dataset_id}"], "question": "water"}),
    ("DELETE", "/datasets", {"ids": ["{dataset_id}"]}),
    ("GET", "/datasets?id={dataset_id}", None),
    ("GET", "/datasets?ids={dataset_id}", None),
    ("POST", "/dify/retrieval", {"knowledge_id": "{dataset_id}", "query": "water"}),
    ("GET", "/dify/retrieval?knowledge_id={dataset_id}&query=water", None),
]
WITHIN = [
    ("POST", "/retrieval", {"dataset_ids": ["{own}"], "question": "water", "document_ids": ["{document_id}"]}),
    ("GET", "/datasets/{own}/documents?id={document_id}", None),
    ("DELETE", "/datasets/{own}/documents", {"ids": ["{document_id}"]}),
    ("POST", "/datasets/{own}/chunks", {"document_ids": ["{document_id}"]}),
    ("DELETE", "/datasets/{own}/chunks", {"document_ids": ["{document_id}"]}),
    ("POST", "/datasets/{own}/documents/parse", {"document_ids": ["{document_id}"]}),
    ("POST", "/datasets/{own}/documents/stop", {"document_ids": ["{document_id}"]}),
    ("PATCH", "/datasets/{own}/documents/{document_id}", {"enabled": 0}),
    ("GET", "/datasets/{own}/documents/{document_id}/chunks", None),
    ("POST", "/datasets/{own}/metadata/update", {"selector": {"document_ids": ["{document_id}"]}}),
    ("GET", "/datasets/{own}/metadata/summary?doc_ids={document_id}", None),
]


def filled(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"{(\w+)}", lambda match: ids[match[1]], value)
    if isinstance(value, list):
        return [filled(item, ids) for item in value]
    return {key: filled(item, ids) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.fixture
async def theirs(api: Server) -> dict[str, str]:
    """Ids of what the other tenant has."""
    other = Server(api.app, api.parts, api.other_tenant, api.other_key, api.tenant, api.key)
    dataset = await other.dataset("theirs")
    document = await other.parsed(dataset)
    chunks = (await other.call("GET", f"/datasets/{dataset}/documents/{document}/chunks")).data["chunks"]
    return {"dataset_id": dataset, "document_id": document, "chunk_id": chunks[0]["id"]}


async def same(api: Server, theirs: dict[str, str], method: str, path: str, body: Any, own: str = "", **more: Any) -> None:
    """The answer for their ids is the one for unknown ids, but for the ids themselves."""
    seen = []
    for ids in (theirs, UNKNOWN):
        answer = await api.call(method, filled(path, {**ids, "own": own}), filled(body, {**ids, "own": own}), **more)
        text = repr(answer.body)
        for name, value in ids.items():
            text = text.replace(value, name)
        seen.append((answer.status, text))
    assert seen[0] == seen[1], (method, path)


async def test_every_route_that_names_a_dataset(api: Server, theirs: dict[str, str]) -> None:
    swept = 0
    for spec in api.app.specs.values():
        if "<dataset_id>" not in spec.rules[0]:
            continue
        body, content_type = multipart(("file", "a.txt", b"x"))
        upload = {"data": body, "headers": {"Content-Type": content_type}} if spec.content_type.startswith("multipart") else {}
        path = re.sub(r"<(\w+)>", r"{\1}", spec.rules[0].removeprefix("/api/v1"))
        for method in spec.methods:
            await same(api, theirs, method, path, None if upload else BODIES.get(spec.endpoint), **upload)
            answer = await api.call(method, filled(path, theirs), None if upload else filled(BODIES.get(spec.endpoint), theirs), **upload)
            assert answer.status == 404, (method, path, answer.body)
            swept += 1
    assert swept >= 25


@pytest.mark.parametrize(("method", "path", "body"), BY_BODY)
async def test_routes_that_name_a_dataset_elsewhere(api: Server, theirs: dict[str, str], method: str, path: str, body: Any) -> None:
    await same(api, theirs, method, path, body)


@pytest.mark.parametrize(("method", "path", "body"), WITHIN)
async def test_documents_of_another_tenant_within_ones_own_dataset(
    api: Server, theirs: dict[str, str], method: str, path: str, body: Any
) -> None:
    await same(api, theirs, method, path, body, own=await api.dataset("own"))


async def test_their_things_are_as_they_were(api: Server, theirs: dict[str, str]) -> None:
    await test_every_route_that_names_a_dataset(api, theirs)
    other = Server(api.app, api.parts, api.other_tenant, api.other_key, api.tenant, api.key)
    document = await other.listed(theirs["dataset_id"], theirs["document_id"])
    assert (document["name"], document["run"], document["chunk_count"], document["status"]) == ("water.txt", "DONE", 2, "1")
    assert (await other.call("GET", "/datasets")).data[0]["name"] == "theirs"


async def test_names_are_unique_by_tenant_only(api: Server, theirs: dict[str, str]) -> None:
    assert (await api.call("POST", "/datasets", {"name": "theirs"})).data["name"] == "theirs"
    assert (await api.call("GET", "/datasets")).body["total_datasets"] == 1
