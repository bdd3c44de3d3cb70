"""The OpenAI routes: the chat's own, with the contract's texts, and /v1 with the published client."""

import base64
from typing import Any

import numpy as np
import openai
import pytest

from tests.api.chat.conftest import EMBEDDING, MODEL, NO_MODEL, WATER, Server
from tests.api.chat.listening import listening

USER = {"role": "user", "content": "When does water boil at sea level?"}
GOOD = {"model": "model", "messages": [USER]}

REFUSED: list[tuple[dict[str, Any], int, int, str]] = [
    ({}, 400, 101, "required argument are missing: model,messages; "),
    ({"model": "model"}, 400, 101, "required argument are missing: messages; "),
    (GOOD | {"extra_body": "x"}, 400, 102, "extra_body must be an object."),
    (GOOD | {"extra_body": {"reference_metadata": "x"}}, 400, 102, "reference_metadata must be an object."),
    (GOOD | {"reference_metadata": {"fields": "x"}}, 400, 102, "reference_metadata.fields must be an array."),
    (GOOD | {"messages": []}, 400, 102, "You have to provide messages."),
    (GOOD | {"messages": "hi"}, 400, 102, "messages must be an array."),
    (GOOD | {"messages": ["hi"]}, 400, 102, "Each message must be an object."),
    (
        GOOD | {"messages": [{"role": "user", "content": 7}]},
        400, 102, "messages[].content must be a string or an array of content parts.",
    ),
    (
        GOOD | {"messages": [USER, {"role": "assistant", "content": "x"}]},
        400, 102, "The last content of this conversation is not from user.",
    ),
    (GOOD | {"model": "nope@Sim"}, 404, 101, "`llm_id` nope@Sim doesn't exist"),
    (GOOD | {"metadata_condition": "x"}, 400, 102, "metadata_condition must be an object."),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code", "message"), REFUSED)
@pytest.mark.parametrize("route", ["openai", "chats_openai"])
async def test_the_chats_route_refuses_with_the_contracts_texts(
    server: Server, route: str, body: dict[str, Any], status: int, code: int, message: str
) -> None:
    chat = await server.chat()
    found = await server.call("POST", f"/{route}/{chat}/chat/completions", body)
    assert found == (status, {"code": code, "data": None, "message": message})


async def test_unknown_and_foreign_chats_look_the_same(server: Server) -> None:
    chat = await server.chat()
    for chat_id, key in (("0" * 32, None), (chat, server.other_key)):
        found = await server.call("POST", f"/openai/{chat_id}/chat/completions", GOOD, key=key)
        assert found == (404, {"code": 102, "data": None, "message": f"You don't own the chat {chat_id}"})


async def test_a_completion_has_openais_shape(server: Server) -> None:
    server.says("Water boils at 100 °C ", "at sea level.")
    chat = await server.grounded_chat()
    messages = [{"role": "system", "content": "dropped"}, {"role": "assistant", "content": "dropped"}]
    messages.append(
        {"role": "user", "content": [{"type": "text", "text": "When does"}, {"type": "image_url"}, {"type": "text", "text": "water boil?"}]}
    )
    status, answer = await server.call("POST", f"/openai/{chat}/chat/completions", {"model": "model", "messages": messages})
    assert status == 200
    assert answer.keys() == {"id", "object", "created", "model", "usage", "choices"}
    assert (answer["id"], answer["object"], answer["model"]) == (f"chatcmpl-{chat}", "chat.completion", MODEL)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert min(usage["prompt_tokens"], usage["completion_tokens"]) > 0
    assert usage["completion_tokens_details"].keys() == {"reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"}
    assert answer["choices"] == [
        {
            "index": 0, "logprobs": None, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Water boils at 100 °C at sea level."},
        }
    ]  # fmt: skip
    assert server.prompts[0][-1] == {"role": "user", "content": "When does\nwater boil?"}
    assert len(server.prompts[0]) == 2


@pytest.mark.parametrize("inside", [True, False], ids=["extra_body", "top level"])
async def test_references_and_their_metadata_come_when_asked_for(server: Server, inside: bool) -> None:
    server.says("Water boils at 100 °C at sea level.")
    dataset = await server.dataset("facts", WATER, year="2024", author="me")
    chat = await server.chat(dataset_ids=[dataset])
    extras = {"reference": True, "reference_metadata": {"include": True, "fields": ["year"]}}
    body = GOOD | ({"extra_body": extras} if inside else extras)
    message = (await server.call("POST", f"/openai/{chat}/chat/completions", body))[1]["choices"][0]["message"]
    assert message["content"] == "Water boils at 100 °C at sea level [ID:0]."
    assert [chunk["document_metadata"] for chunk in message["reference"]] == [{"year": "2024"}]
    nothing = {"metadata_condition": {"conditions": [{"name": "year", "comparison_operator": "is", "value": "1999"}]}}
    message = (await server.call("POST", f"/openai/{chat}/chat/completions", body | nothing))[1]["choices"][0]["message"]
    assert (message["reference"], message["content"]) == ([], "Sorry! No relevant content was found in the knowledge base!")


async def test_a_stream_has_openais_chunks(server: Server) -> None:
    server.says("Yes", " it", reasoning=("hm",))
    chat = await server.grounded_chat()
    *chunks, last, done = await server.stream(f"/openai/{chat}/chat/completions", GOOD | {"stream": True, "reference": True})
    assert done == "[DONE]"
    assert all(chunk.keys() == last.keys() for chunk in chunks)
    assert last.keys() == {"id", "object", "created", "model", "system_fingerprint", "usage", "choices"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    empty = {"role": "assistant", "function_call": None, "tool_calls": None}
    assert deltas == [
        empty | {"content": None, "reasoning_content": "hm"},
        empty | {"content": "Yes", "reasoning_content": None},
        empty | {"content": " it", "reasoning_content": None},
    ]
    assert all(chunk["usage"] is None and chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    choice = last["choices"][0]
    assert (choice["finish_reason"], choice["delta"]["content"], choice["delta"]["final_content"]) == ("stop", None, "Yes it")
    assert len(choice["delta"]["reference"]) == 2
    assert last["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}


async def test_the_published_client_works_streamed_and_not(server: Server) -> None:
    server.says("Water boils at 100 °C ", "at sea level.")
    chat = await server.grounded_chat("Physics teacher")
    async with listening(server.app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=server.key, max_retries=0) as client:
        for model in (chat, "physics TEACHER", MODEL, "alias"):
            reply = await client.chat.completions.create(model=model, messages=[USER])
            assert reply.choices[0].message.content == "Water boils at 100 °C at sea level."
            assert (reply.model, reply.usage.total_tokens > 0) == (model, True)
        stream = await client.chat.completions.create(model="Physics teacher", messages=[USER], stream=True, extra_body={"reference": True})
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Water boils at 100 °C at sea level [ID:0]."
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert chunks[-1].choices[0].delta.reference[0]["content"] == WATER
        models = [model.id async for model in await client.models.list()]
        assert {"Physics teacher", MODEL, EMBEDDING, NO_MODEL} <= set(models)
        assert (await client.models.retrieve(MODEL)).id == MODEL
        base = openai.AsyncOpenAI(base_url=f"{url}/api/v1/openai/{chat}", api_key=server.key, max_retries=0)
        async with base:
            assert (await base.chat.completions.create(model="model", messages=[USER])).choices[0].finish_reason == "stop"


async def test_the_published_client_gets_vectors(server: Server) -> None:
    async with listening(server.app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=server.key, max_retries=0) as client:
        two = await client.embeddings.create(model=EMBEDDING, input=["water", "iron"])
        one = await client.embeddings.create(model=EMBEDDING, input="water", encoding_format="float")
    assert [entry.index for entry in two.data] == [0, 1]
    assert two.usage.prompt_tokens > 0
    np.testing.assert_allclose(two.data[0].embedding, one.data[0].embedding, rtol=1e-6)
    assert np.linalg.norm(one.data[0].embedding) == pytest.approx(1.0, abs=1e-5)


async def test_the_published_client_understands_our_errors(server: Server) -> None:
    async with listening(server.app) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="ragflow-" + "x" * 43, max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError, match="invalid API key"):
                await stranger.models.list()
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=server.key, max_retries=0) as client:
            with pytest.raises(openai.NotFoundError, match="the model `nobody` does not exist"):
                await client.chat.completions.create(model="nobody", messages=[USER])
            with pytest.raises(openai.NotFoundError):
                await client.embeddings.create(model=MODEL, input="x")
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("nobody")
            with pytest.raises(openai.BadRequestError, match="`n` must be 1"):
                await client.chat.completions.create(model=MODEL, messages=[USER], n=2)
            with pytest.raises(openai.BadRequestError, match="You have to provide messages"):
                await client.chat.completions.create(model=MODEL, messages=[])
            with pytest.raises(openai.BadRequestError, match="none of them empty"):
                await client.embeddings.create(model=EMBEDDING, input=[""])
            with pytest.raises(openai.BadRequestError, match="8 dimensions"):
                await client.embeddings.create(model=EMBEDDING, input="x", dimensions=3)
            server.says(failure="html")
            with pytest.raises(openai.InternalServerError, match="chatty"):
                await client.chat.completions.create(model=MODEL, messages=[USER])
            server.says("one", "two", "three", failure="reset_mid_stream")
            stream = await client.chat.completions.create(model=MODEL, messages=[USER], stream=True)
            with pytest.raises(openai.APIError, match="chatty"):
                _ = [chunk async for chunk in stream]


async def test_a_system_message_reaches_a_bare_model(server: Server) -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER]
    await server.call("POST", "/v1/chat/completions", {"model": MODEL, "messages": messages, "temperature": 0.5})
    assert server.prompts == [messages]
    assert server.vendor.requests[-1].body["temperature"] == 0.5


async def test_another_tenants_chat_is_no_model(server: Server) -> None:
    chat = await server.chat("mine")
    for model in (chat, "mine"):
        status, answer = await server.call("POST", "/v1/chat/completions", {"model": model, "messages": [USER]}, key=server.other_key)
        assert (status, answer["error"]["message"]) == (404, f"the model `{model}` does not exist")
    _, answer = await server.call("GET", "/v1/models", key=server.other_key)
    assert "mine" not in {model["id"] for model in answer["data"]}


async def test_vectors_as_base64_are_little_endian_float32(server: Server) -> None:
    _, answer = await server.call("POST", "/v1/embeddings", {"model": EMBEDDING, "input": "x", "encoding_format": "base64"})
    assert np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4").shape == (8,)


@pytest.mark.parametrize(("body", "message"), [(b"{broken", "Malformed JSON"), (b"[1]", "must be an object"), ({"model": "x"}, "missing")])
async def test_bad_bodies_are_told_as_openai_tells_them(server: Server, body: Any, message: str) -> None:
    status, answer = await server.call("POST", "/v1/chat/completions", body)
    assert status == 400
    assert answer["error"].keys() == {"message", "type", "code", "param"}
    assert message in answer["error"]["message"]


@pytest.mark.parametrize("route", ["own", "root"])
@pytest.mark.parametrize(("asked", "limit"), [({"max_completion_tokens": 7}, 7), ({"max_tokens": 9, "max_completion_tokens": 7}, 7)])
async def test_the_newer_name_of_the_token_limit_counts(server: Server, route: str, asked: dict[str, int], limit: int) -> None:
    chat = await server.chat("newer")
    path, model = (f"/openai/{chat}/chat/completions", "model") if route == "own" else ("/v1/chat/completions", chat)
    status, _ = await server.call("POST", path, {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": False, **asked})
    assert status == 200
    assert server.vendor.requests[-1].body["max_tokens"] == limit
