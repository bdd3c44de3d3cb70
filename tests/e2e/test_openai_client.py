"""The published `openai` package, unmodified, against a real server."""

from collections.abc import Iterator

import openai
import pytest

from tests.e2e.flows import create_chat, create_dataset, ingest
from tests.e2e.server_process import ROOT, ServerProcess

QUESTION = [{"role": "user", "content": "To what speed does a stone of four feet turn?"}]


@pytest.fixture(scope="module")
def chat_id(server: ServerProcess) -> str:
    dataset_id = create_dataset(server, "mills")
    ingest(server, dataset_id, {"millwright.md": (ROOT / "docs/examples/millwright.md").read_bytes()})
    return create_chat(server, "miller", [dataset_id])


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=server.api_key, base_url=f"{server.url}/v1", max_retries=0) as client:
        yield client


def test_a_chat_is_a_model_by_name_or_id(client: openai.OpenAI, chat_id: str) -> None:
    for model in ("miller", chat_id):
        reply = client.chat.completions.create(model=model, messages=QUESTION)
        assert "120 revolutions" in reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0


def test_a_streamed_answer_is_the_same(client: openai.OpenAI, chat_id: str) -> None:
    with client.chat.completions.create(model="miller", messages=QUESTION, stream=True) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "120 revolutions" in text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_the_contracts_own_openai_route_works_with_the_client(server: ServerProcess, chat_id: str) -> None:
    with openai.OpenAI(api_key=server.api_key, base_url=f"{server.url}/api/v1/openai/{chat_id}", max_retries=0) as client:
        reply = client.chat.completions.create(model="model", messages=QUESTION, extra_body={"reference": True})
    assert "120 revolutions" in reply.choices[0].message.content
    assert reply.choices[0].message.reference


def test_models_are_listed(client: openai.OpenAI, chat_id: str) -> None:
    assert chat_id in {model.id for model in client.models.list()} or "miller" in {model.id for model in client.models.list()}


def test_embeddings_are_unit_vectors_in_order(client: openai.OpenAI) -> None:
    reply = client.embeddings.create(model="all-MiniLM-L6-v2@Local", input=["a mill", "a wheel"])
    assert [item.index for item in reply.data] == [0, 1]
    assert all(abs(sum(x * x for x in item.embedding) - 1) < 1e-3 for item in reply.data)


def test_errors_are_the_clients_own_classes(server: ServerProcess, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=QUESTION)
    with openai.OpenAI(api_key="wrong", base_url=f"{server.url}/v1", max_retries=0) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
