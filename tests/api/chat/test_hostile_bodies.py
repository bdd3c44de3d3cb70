"""Bodies and queries that nobody should send, to every chat route: a clear refusal or an answer, never a failure of ours."""

from typing import Any

import pytest

from tests.api.chat.conftest import EMBEDDING, MODEL, WATER, Server

ODD: list[Any] = [None, True, -1, 10**30, "", "x" * 70_000, "\u0000", "💧水", [], [None], ["x"] * 200, {"a": {"b": []}}]
FIELDS = {
    "/chats": [
        "name", "dataset_ids", "kb_ids", "description", "icon", "llm_id", "tenant_llm_id", "llm_setting", "prompt_config", "rerank_id",
        "top_n", "top_k", "similarity_threshold", "vector_similarity_weight", "meta_data_filter", "llm", "prompt", "avatar", "ids",
        "delete_all", "chat_id",
    ],
    "/sessions": ["name", "ids", "delete_all"],
    "/completions": [
        "question", "messages", "session_id", "stream", "llm_id", "temperature", "top_p", "max_tokens", "pass_all_history_messages",
        "store_history_messages", "legacy", "quote", "doc_ids", "files", "knowledge", "date",
    ],
    "/openai": [
        "model", "messages", "stream", "temperature", "reference", "reference_metadata", "metadata_condition",
        "extra_body", "n", "tools",
    ],
    "/embeddings": ["model", "input", "encoding_format", "dimensions"],
    "/searches": ["name", "description", "search_config", "avatar"],
    "/ask": ["question", "kb_ids", "search_id"],
}  # fmt: skip
QUESTION = {"question": "When does water boil?"}
CHAT_MESSAGES = {"messages": [{"role": "user", "content": "When?"}]}


async def routes(server: Server) -> list[tuple[str, str, dict[str, Any], list[str]]]:
    """Method, path, a good body, and the fields to spoil."""
    chat = await server.grounded_chat()
    session = (await server.data("POST", f"/chats/{chat}/sessions", {}))["id"]
    dataset = await server.dataset("more", WATER)
    search = (await server.data("POST", "/searches", {"name": "s"}))["search_id"]
    return [
        ("POST", "/chats", {"name": "new"}, FIELDS["/chats"]),
        ("PUT", f"/chats/{chat}", {}, FIELDS["/chats"]),
        ("PATCH", f"/chats/{chat}", {}, FIELDS["/chats"]),
        ("DELETE", "/chats", {}, ["ids", "chat_id"]),
        ("POST", f"/chats/{chat}/sessions", {}, FIELDS["/sessions"]),
        ("PATCH", f"/chats/{chat}/sessions/{session}", {}, FIELDS["/sessions"]),
        ("DELETE", f"/chats/{chat}/sessions", {}, ["ids"]),
        ("POST", f"/chats/{chat}/completions", QUESTION, FIELDS["/completions"]),
        ("POST", "/chat/completions", QUESTION | {"stream": False}, [*FIELDS["/completions"], "chat_id"]),
        ("POST", f"/openai/{chat}/chat/completions", {"model": "model"} | CHAT_MESSAGES, FIELDS["/openai"]),
        ("POST", "/v1/chat/completions", {"model": MODEL} | CHAT_MESSAGES, FIELDS["/openai"]),
        ("POST", "/v1/embeddings", {"model": EMBEDDING, "input": "x"}, FIELDS["/embeddings"]),
        ("POST", "/searches", {"name": "new"}, FIELDS["/searches"]),
        ("PUT", f"/searches/{search}", {"name": "s", "search_config": {}}, FIELDS["/searches"]),
        ("POST", f"/searches/{search}/completions", QUESTION | {"kb_ids": [dataset]}, FIELDS["/ask"]),
        ("POST", "/chat/recommendation", QUESTION, FIELDS["/ask"]),
        ("POST", "/chat/mindmap", QUESTION | {"kb_ids": [dataset]}, FIELDS["/ask"]),
    ]


@pytest.mark.parametrize("number", range(17))
async def test_no_field_of_whatever_kind_is_a_failure_of_ours(server: Server, number: int) -> None:
    method, path, good, fields = (await routes(server))[number]
    for field in fields:
        for value in ODD:
            response = await server.raw(method, path, good | {field: value})
            raw = await response.get_data()
            assert response.status_code < 500, (field, repr(value)[:40], raw[:300])
            assert b"Internal server error" not in raw, (field, repr(value)[:40], raw[:300])


@pytest.mark.parametrize("config", ["prompt_config", "llm_setting", "meta_data_filter"])
async def test_settings_of_whatever_kind_do_not_break_the_answer(server: Server, config: str) -> None:
    keys = {
        "prompt_config": [
            "system", "prologue", "parameters", "empty_response", "quote", "tts", "refine_multiturn", "keyword", "cross_languages",
        ],
        "llm_setting": ["temperature", "top_p", "max_tokens", "frequency_penalty"],
        "meta_data_filter": ["method", "manual", "semi_auto", "logic"],
    }[config]  # fmt: skip
    chat = await server.grounded_chat()
    for key in keys:
        for value in ODD:
            setting = {key: value} | ({"method": "manual"} if config == "meta_data_filter" and key != "method" else {})
            status, answer = await server.call("PUT", f"/chats/{chat}", {config: setting})
            if status != 200:
                assert status == 400, answer
                continue
            frames = await server.stream(f"/chats/{chat}/completions", QUESTION)
            assert "Internal server error" not in str(frames), (key, repr(value)[:40], frames[-2:])


@pytest.mark.parametrize(
    "key", ["kb_ids", "doc_ids", "similarity_threshold", "top_k", "llm_setting", "chat_id", "rerank_id", "meta_data_filter", "keyword"]
)
async def test_settings_of_a_search_of_whatever_kind_do_not_break_it(server: Server, key: str) -> None:
    dataset = await server.dataset("facts", WATER)
    search = (await server.data("POST", "/searches", {"name": "s"}))["search_id"]
    for value in ODD:
        await server.data("PUT", f"/searches/{search}", {"name": "s", "search_config": {key: value}})
        response = await server.raw("POST", f"/searches/{search}/completions", QUESTION | {"kb_ids": [dataset]})
        raw = await response.get_data()
        assert response.status_code < 500, (repr(value)[:40], raw[:300])
        assert b"Internal server error" not in raw, (repr(value)[:40], raw[:300])


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"7", b"null", b"\xff\xfe", b'{"name": "\\ud800"}', b"{" * 10_000])
async def test_no_raw_body_is_a_failure_of_ours(server: Server, body: bytes) -> None:
    for method, path, _, _ in await routes(server):
        response = await server.raw(method, path, body)
        assert response.status_code < 500, (method, path, await response.get_data())


@pytest.mark.parametrize(
    "query", ["page=x&page_size=-1", "page=99999999999999999999", "desc=", "id=%00", "name=%FF", "keywords=%27%25_", "orderby="]
)
async def test_no_query_is_a_failure_of_ours(server: Server, query: str) -> None:
    chat = await server.chat()
    for path in ("/chats", f"/chats/{chat}/sessions", "/searches", "/v1/models"):
        response = await server.raw("GET", f"{path}?{query}")
        assert response.status_code < 500, (path, await response.get_data())
