"""The published `ragflow-sdk` 0.27.0, unmodified, against a real server."""

import importlib
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import needs
from tests.e2e.server_process import ROOT, ServerProcess

SDK = ROOT / ".cache" / "ragflow-sdk"
EXAMPLES = ROOT / "docs" / "examples"
FILES = ("tide-mills.pdf", "millwright.md", "ledger.txt")


@pytest.fixture(scope="module")
def rag(server: ServerProcess) -> Iterator[Any]:
    if not SDK.exists():
        needs("ragflow-sdk; run `bin/setup test`")
    sys.path.append(str(SDK))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        sdk = importlib.import_module("ragflow_sdk")
    yield sdk.RAGFlow(api_key=server.api_key, base_url=server.url)
    sys.path.remove(str(SDK))


@pytest.fixture(scope="module")
def dataset(rag: Any) -> Any:
    """A dataset with the three example files, parsed."""
    dataset = rag.create_dataset(name="mills", description="by the SDK")
    dataset.upload_documents([{"display_name": name, "blob": (EXAMPLES / name).read_bytes()} for name in FILES])
    documents = dataset.list_documents()
    dataset.async_parse_documents([document.id for document in documents])
    deadline = time.monotonic() + 60
    while {document.run for document in dataset.list_documents()} != {"DONE"}:
        assert time.monotonic() < deadline, [(one.name, one.run, one.progress_msg) for one in dataset.list_documents()]
        time.sleep(0.1)
    return dataset


def test_documents_are_listed_with_their_counts(dataset: Any) -> None:
    documents = {document.name: document for document in dataset.list_documents()}
    assert set(documents) == set(FILES)
    assert all(document.progress == 1.0 and document.chunk_count > 0 and document.token_count > 0 for document in documents.values())
    assert "Task done" in documents["ledger.txt"].progress_msg


def test_chunks_are_listed_added_changed_and_deleted(dataset: Any) -> None:
    (document,) = dataset.list_documents(name="ledger.txt")
    before = document.list_chunks()
    assert any("Hartley" in chunk.content for chunk in before)
    chunk = document.add_chunk(content="Saturday: the wheel froze solid.", important_keywords=["ice"])
    assert chunk.id in {one.id for one in document.list_chunks()}
    chunk.update({"content": "Saturday: the wheel thawed."})
    (changed,) = [one for one in document.list_chunks() if one.id == chunk.id]
    assert changed.content == "Saturday: the wheel thawed."
    document.delete_chunks([chunk.id])
    assert {one.id for one in document.list_chunks()} == {one.id for one in before}


def test_retrieval_finds_the_right_document_first(rag: Any, dataset: Any) -> None:
    found = rag.retrieve(question="What was the largest delivery of the year?", dataset_ids=[dataset.id])
    assert "abbey" in found[0].content
    assert found[0].similarity >= found[-1].similarity


@pytest.mark.parametrize("stream", [True, False])
def test_a_session_answers_with_citations(rag: Any, dataset: Any, stream: bool) -> None:
    chat = rag.create_chat(f"miller {stream}", dataset_ids=[dataset.id])
    session = chat.create_session("first")
    messages = list(session.ask("How often are the millstones dressed?", stream=stream))
    answer = "".join(message.content for message in messages)
    assert "two to three weeks" in answer
    assert "[ID:" in answer
    reference = next(message.reference for message in messages if message.reference)
    assert any("dressed every two to three weeks" in chunk["content"] for chunk in reference)
    (saved,) = chat.list_sessions(id=session.id)
    assert [message["role"] for message in saved.messages] == ["assistant", "user", "assistant"]
    rag.delete_chats([chat.id])


def test_datasets_and_documents_are_changed_and_deleted(rag: Any) -> None:
    dataset = rag.create_dataset(name="short-lived")
    (document,) = dataset.upload_documents([{"display_name": "a.txt", "blob": b"some words"}])
    document.update({"name": "b.txt"})
    assert [one.name for one in dataset.list_documents()] == ["b.txt"]
    assert document.download() == b"some words"
    dataset.update({"name": "renamed"})
    assert rag.get_dataset("renamed").id == dataset.id
    dataset.delete_documents([document.id])
    assert dataset.list_documents() == []
    rag.delete_datasets([dataset.id])
    with pytest.raises(Exception, match="lacks permission"):
        rag.get_dataset("renamed")
