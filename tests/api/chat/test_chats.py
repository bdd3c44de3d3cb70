"""/chats: every text of the contract, defaults, changes, lists, deletes, and other tenants' chats."""

from typing import Any

import pytest

from api.chat_input import SYSTEM
from tests.api.chat.conftest import EMBEDDING, MODEL, WATER, Server

KEYS = {
    "id", "tenant_id", "name", "description", "icon", "language", "llm_id", "tenant_llm_id", "llm_setting", "prompt_type",
    "prompt_config", "meta_data_filter", "similarity_threshold", "vector_similarity_weight", "top_n", "top_k", "do_refer", "rerank_id",
    "tenant_rerank_id", "dataset_ids", "kb_names", "status", "create_time", "create_date", "update_time", "update_date",
}  # fmt: skip


async def test_a_new_chat_has_the_contracts_defaults(server: Server) -> None:
    chat = await server.data("POST", "/chats", {"name": "  helper ", "id": "mine", "unknown": 1})
    assert chat.keys() == KEYS
    assert chat["id"] != "mine"
    assert (chat["name"], chat["description"], chat["icon"], chat["llm_setting"]) == ("helper", "A helpful Assistant", "", {})
    assert (chat["top_n"], chat["top_k"], chat["similarity_threshold"], chat["vector_similarity_weight"]) == (6, 1024, 0.1, 0.3)
    assert (chat["do_refer"], chat["status"], chat["prompt_type"], chat["rerank_id"], chat["dataset_ids"]) == ("1", "1", "simple", "", [])
    assert chat["llm_id"] == chat["tenant_llm_id"] == server.parts.models.resolve(MODEL, "chat").id
    assert chat["prompt_config"] == {
        "system": SYSTEM,
        "prologue": "Hi! I'm your assistant. What can I do for you?",
        "parameters": [{"key": "knowledge", "optional": False}, {"key": "date", "optional": True}],
        "empty_response": "Sorry! No relevant content was found in the knowledge base!",
        "quote": True,
        "tts": False,
        "refine_multiturn": True,
    }
    assert SYSTEM.splitlines()[1:] == [
        "      Here is the knowledge base:",
        "      {knowledge}",
        "      The above is the knowledge base.",
    ]
    assert chat["create_date"].endswith("GMT")


REFUSED: list[tuple[dict[str, Any], int, int, str]] = [
    ({"name": "x", "tenant_id": "t"}, 102, 400, "`tenant_id` must not be provided"),
    ({}, 102, 400, "`name` is required"),
    ({"name": None}, 102, 400, "`name` is required"),
    ({"name": "   "}, 102, 400, "`name` is required"),
    ({"name": 7}, 102, 400, "chat name must be a string"),
    ({"name": "a" * 256}, 102, 400, "chat name length is 256 which is larger than 255"),
    ({"name": "水" * 86}, 102, 400, "chat name length is 258 which is larger than 255"),
    ({"name": "x", "dataset_ids": "d"}, 102, 400, "`dataset_ids` should be a list."),
    ({"name": "x", "dataset_ids": ["0" * 32]}, 102, 404, "You don't own the dataset " + "0" * 32),
    ({"name": "x", "kb_ids": ["nope"]}, 102, 404, "You don't own the dataset nope"),
    ({"name": "x", "llm_id": "nope@Sim"}, 102, 404, "`llm_id` nope@Sim doesn't exist"),
    ({"name": "x", "llm_id": "chatty"}, 102, 404, "`llm_id` chatty doesn't exist"),
    ({"name": "x", "llm_id": EMBEDDING}, 102, 404, f"`llm_id` {EMBEDDING} doesn't exist"),
    ({"name": "x", "tenant_llm_id": "0" * 32}, 102, 400, "`tenant_llm_id` must be a valid tenant model id"),
    ({"name": "x", "rerank_id": "nope@Sim"}, 102, 404, "`rerank_id` nope@Sim doesn't exist"),
    ({"name": "x", "prompt_config": "p"}, 102, 400, "`prompt_config` should be an object."),
    ({"name": "x", "llm_setting": "s"}, 102, 400, "`llm_setting` should be an object."),
    (
        {"name": "x", "prompt_config": {"parameters": [{"key": "k"}, {"key": "k"}]}},
        102, 400, "`parameters` contains duplicate key: k",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "status", "message"), REFUSED)
async def test_a_chat_is_refused_with_the_contracts_text(
    server: Server, body: dict[str, Any], code: int, status: int, message: str
) -> None:
    assert await server.call("POST", "/chats", body) == (status, {"code": code, "data": None, "message": message})


async def test_names_are_taken_without_their_case(server: Server) -> None:
    await server.chat("Helper")
    status, answer = await server.call("POST", "/chats", {"name": "HELPER"})
    assert (status, answer["code"], answer["message"]) == (409, 102, "duplicated chat name in creating chat")
    other = await server.chat("other")
    for method in ("PUT", "PATCH"):
        status, answer = await server.call(method, f"/chats/{other}", {"name": "helper"})
        assert (status, answer["code"], answer["message"]) == (409, 102, "duplicated chat name")


async def test_datasets_must_be_parsed_own_and_of_one_embedding(server: Server) -> None:
    empty = await server.dataset("empty")
    good = await server.dataset("good", WATER)
    foreign = await server.dataset("foreign", WATER, tenant=server.other_tenant)
    else_embedded = await server.dataset("else", WATER, embedding="all-MiniLM-L6-v2@Local")
    for ids, status, message in (
        ([empty], 400, f"The dataset {empty} doesn't own parsed file"),
        ([good, foreign], 404, f"You don't own the dataset {foreign}"),
        ([good, else_embedded], 400, "Datasets use different embedding models: ['all-MiniLM-L6-v2@Local', 'vectors@Sim']"),
    ):
        found = await server.call("POST", "/chats", {"name": "x", "dataset_ids": ids})
        assert found == (status, {"code": 102, "data": None, "message": message})
    chat = await server.data("POST", "/chats", {"name": "x", "dataset_ids": ["", None, good]})
    assert (chat["dataset_ids"], chat["kb_names"]) == ([good], ["good"])


async def test_model_names_are_echoed_as_sent(server: Server) -> None:
    chat = await server.data("POST", "/chats", {"name": "x", "llm_id": "alias", "rerank_id": "BAAI/bge-reranker-v2-m3"})
    assert (chat["llm_id"], chat["rerank_id"]) == ("alias", "BAAI/bge-reranker-v2-m3")
    assert chat["tenant_llm_id"] == server.parts.models.resolve(MODEL, "chat").id


@pytest.mark.parametrize(("sent", "kept"), [("seven", 0), (None, 6), ("7", 7), ([], 0), (-3, -3), (1e400, 0), (10**30, (1 << 31) - 1)])
async def test_a_number_that_is_none_counts_as_zero(server: Server, sent: Any, kept: int) -> None:
    raw = (
        b'{"name":"x","top_n":1e400}'
        if sent == float("inf")
        else {"name": "x", "top_n": sent}
        if sent != 10**30
        else b'{"name":"x","top_n":1e30}'
    )
    status, answer = await server.call("POST", "/chats", raw)
    if status == 400:  # a number no JSON reader of ours takes
        assert sent == float("inf")
        return
    assert answer["data"]["top_n"] == kept


async def test_keys_of_older_clients_are_read_where_the_new_ones_are_absent(server: Server) -> None:
    body = {
        "name": "old", "avatar": "pic", "llm": {"model_name": MODEL, "temperature": 0.2},
        "prompt": {"prompt": "Use {knowledge}", "opener": "Hello", "show_quote": False, "top_n": 3, "keywords_similarity_weight": 0.75,
                   "variables": [{"key": "knowledge", "optional": False}]},
    }  # fmt: skip
    chat = await server.data("POST", "/chats", body)
    assert (chat["icon"], chat["llm_id"], chat["llm_setting"]) == ("pic", MODEL, {"temperature": 0.2})
    assert (chat["prompt_config"]["system"], chat["prompt_config"]["prologue"], chat["prompt_config"]["quote"]) == (
        "Use {knowledge}", "Hello", False,
    )  # fmt: skip
    assert (chat["top_n"], chat["vector_similarity_weight"]) == (3, 0.25)
    assert not {"llm", "prompt", "avatar", "kb_ids", "datasets"} & chat.keys()
    new = await server.data("POST", "/chats", body | {"name": "new", "llm_setting": {"top_p": 1}, "prompt_config": {}, "icon": "i"})
    assert (new["icon"], new["llm_setting"], new["prompt_config"]["system"]) == ("i", {"top_p": 1}, SYSTEM)


async def test_put_replaces_and_patch_merges(server: Server) -> None:
    chat = await server.chat(llm_setting={"temperature": 0.1, "top_p": 0.3}, description="mine")
    patched = await server.data("PATCH", f"/chats/{chat}", {"llm_setting": {"top_p": 0.9}, "prompt_config": {"quote": False}, "name": None})
    assert patched["llm_setting"] == {"temperature": 0.1, "top_p": 0.9}
    assert (patched["prompt_config"]["quote"], patched["prompt_config"]["system"]) == (False, SYSTEM)
    put = await server.data("PUT", f"/chats/{chat}", {"llm_setting": {"top_p": 0.5}, "prompt_config": {"system": "s"}})
    assert (put["llm_setting"], put["prompt_config"]) == ({"top_p": 0.5}, {"system": "s"})
    assert (put["description"], put["name"]) == ("mine", "assistant")


async def test_changes_are_refused_with_their_own_texts(server: Server) -> None:
    chat = await server.chat()
    for method, body, message in (
        ("PUT", {"name": " "}, "`name` is required"),
        ("PUT", {"name": None}, "`name` is required"),
        ("PATCH", {"name": " "}, "`name` cannot be empty"),
        ("PATCH", {"llm_setting": 1}, "`llm_setting` should be an object."),
        ("PUT", {"tenant_id": "t"}, "`tenant_id` must not be provided"),
    ):
        assert await server.call(method, f"/chats/{chat}", body) == (400, {"code": 102, "data": None, "message": message})
    assert (await server.call("PATCH", f"/chats/{chat}", {"tenant_id": "ignored"}))[0] == 200


async def test_unknown_and_foreign_chats_look_the_same(server: Server) -> None:
    chat = await server.chat()
    refused = (403, {"code": 109, "data": False, "message": "no authorization"})
    for path in (f"/chats/{chat}", "/chats/" + "0" * 32, "/chats/x"):
        for method in ("GET", "PUT", "PATCH", "DELETE"):
            assert await server.call(method, path, {}, key=server.other_key) == refused
    status, answer = await server.call("DELETE", "/chats", {"ids": [chat]}, key=server.other_key)
    assert (status, answer["message"]) == (404, f"Chat({chat}) not found.")
    assert (await server.call("GET", "/chats", key=server.other_key))[1]["data"] == {"chats": [], "total": 0}
    assert (await server.data("GET", f"/chats/{chat}"))["name"] == "assistant"


async def test_a_list_has_its_own_fields_filters_and_pages(server: Server) -> None:
    ids = [await server.chat(name) for name in ("Alpha", "beta", "Gamma")]
    page = await server.data("GET", "/chats?orderby=name&desc=false&page_size=2")
    assert (page["total"], [chat["name"] for chat in page["chats"]]) == (3, ["Alpha", "Gamma"])
    assert page["chats"][0].keys() == KEYS - {
        "create_date", "update_date", "tenant_llm_id", "tenant_rerank_id", "meta_data_filter",
    } | {"nickname", "tenant_avatar"}  # fmt: skip
    assert page["chats"][0]["nickname"] == "one"
    for query, names in (
        (f"id={ids[0]}", ["Alpha"]),
        ("name=BETA", ["beta"]),
        ("keywords=MM", ["Gamma"]),
        ("name=beta&keywords=zzz", ["beta"]),
        ("id=unknown", []),
        ("name=unknown", []),
        (f"owner_ids={server.tenant}", ["Gamma", "beta", "Alpha"]),
        ("owner_ids=somebody", []),
        ("page=-1&page_size=x", ["Gamma", "beta", "Alpha"]),
    ):
        found = await server.data("GET", f"/chats?{query}")
        assert [chat["name"] for chat in found["chats"]] == names, query
        assert found["total"] == len(names)
    for query, message in (
        ("page_size=101", "page_size must be less than or equal to 100"),
        ("orderby=size", "invalid orderby field: size"),
    ):
        assert await server.call("GET", f"/chats?{query}") == (400, {"code": 101, "data": None, "message": message})


async def test_bulk_deletes_report_what_failed(server: Server) -> None:
    a, b, c, d = [await server.chat(name) for name in "abcd"]
    assert await server.data("DELETE", "/chats") == {}
    assert await server.data("DELETE", "/chats", {"ids": []}) == {}
    assert await server.data("DELETE", "/chats", {"ids": [a]}) == {"success_count": 1}
    assert await server.data("DELETE", "/chats", {"chat_id": b}) is True
    status, answer = await server.call("DELETE", "/chats", {"ids": [c, "x", c]})
    assert (status, answer) == (
        200,
        {
            "code": 0,
            "data": {"success_count": 1, "errors": ["Chat(x) not found.", f"Duplicate chat ids: {c}"]},
            "message": "Partially deleted 1 chats with 2 errors",
        },
    )
    status, answer = await server.call("DELETE", "/chats", {"ids": ["x", "y"]})
    assert (status, answer["code"], answer["message"]) == (404, 102, "Chat(x) not found.; Chat(y) not found.")
    assert await server.data("DELETE", f"/chats/{d}") is True
    await server.chat("e")
    assert await server.data("DELETE", "/chats", {"delete_all": True}) == {"success_count": 1}
    assert await server.data("DELETE", "/chats", {"delete_all": True}) == {}
