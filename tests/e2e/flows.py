"""What callers do, as the end-to-end tests do it: each function is one step and fails with the server's own words."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import requests

from tests.e2e.server_process import Caller

PARSED_WITHIN_SECONDS = 90.0
ENDED = ("DONE", "FAIL", "CANCEL")


def ok(answer: tuple[int, Any]) -> Any:
    """The `data` of an answer that succeeded."""
    status, body = answer
    assert (status, body and body.get("code")) == (200, 0), answer
    return body.get("data")


def create_dataset(server: Caller, name: str, **more: Any) -> str:
    """The id of a new dataset."""
    return ok(server.call("POST", "/datasets", {"name": name, **more}))["id"]


def upload(server: Caller, dataset_id: str, files: Mapping[str, bytes]) -> list[str]:
    """The ids of the documents, in the order given."""
    reply = requests.post(
        f"{server.url}/api/v1/datasets/{dataset_id}/documents",
        headers={"Authorization": f"Bearer {server.api_key}"},
        files=[("file", (name, content)) for name, content in files.items()],
        timeout=120,
    )
    return [document["id"] for document in ok((reply.status_code, reply.json()))]


def start_parsing(server: Caller, dataset_id: str, document_ids: Sequence[str]) -> None:
    """Returns when the tasks are acknowledged."""
    ok(server.call("POST", f"/datasets/{dataset_id}/chunks", {"document_ids": list(document_ids)}))


def documents(server: Caller, dataset_id: str) -> dict[str, dict[str, Any]]:
    """All documents of a dataset by id."""
    found: dict[str, dict[str, Any]] = {}
    page = 1
    while True:
        data = ok(server.call("GET", f"/datasets/{dataset_id}/documents?page={page}&page_size=100"))
        found |= {document["id"]: document for document in data["docs"]}
        if len(data["docs"]) < 100:
            return found
        page += 1


def wait_until_parsed(
    server: Caller, dataset_id: str, document_ids: Sequence[str], seconds: float = PARSED_WITHIN_SECONDS
) -> dict[str, dict[str, Any]]:
    """The documents, all DONE."""
    deadline = time.monotonic() + seconds
    while True:
        found = documents(server, dataset_id)
        states = {document_id: found[document_id] for document_id in document_ids}
        failed = {name: state["progress_msg"] for name, state in states.items() if state["run"] in ("FAIL", "CANCEL")}
        assert not failed, failed
        if all(state["run"] == "DONE" for state in states.values()):
            return states
        waiting = {state["name"]: (state["run"], state["progress_msg"][-200:]) for state in states.values() if state["run"] != "DONE"}
        assert time.monotonic() < deadline, f"still waiting after {seconds:g} seconds: {waiting}\n{server.logs[-2000:]}"
        time.sleep(0.1)


def ingest(server: Caller, dataset_id: str, files: Mapping[str, bytes]) -> list[str]:
    """Upload, parse and wait: the ids of the documents, ready to be found."""
    document_ids = upload(server, dataset_id, files)
    start_parsing(server, dataset_id, document_ids)
    wait_until_parsed(server, dataset_id, document_ids)
    return document_ids


def retrieve(server: Caller, dataset_ids: Sequence[str], question: str, **more: Any) -> dict[str, Any]:
    """The `data` of a retrieval."""
    return ok(server.call("POST", "/retrieval", {"question": question, "dataset_ids": list(dataset_ids), **more}))


def create_chat(server: Caller, name: str, dataset_ids: Sequence[str], **more: Any) -> str:
    """The id of a new chat."""
    return ok(server.call("POST", "/chats", {"name": name, "dataset_ids": list(dataset_ids), **more}))["id"]
