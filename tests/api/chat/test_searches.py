"""/searches and what helps to ask on: every text of the contract, streams, related questions, mind maps."""

from typing import Any

import pytest

from api.search_task import SEARCH_DEFAULTS
from rag.flow.extract import NOTICE
from tests.api.chat.conftest import IRON, NO_MODEL, WATER, Server

QUESTION = {"question": "When does water boil at sea level?"}
LAST = {"code": 0, "message": "", "data": True}
REFUSED = (403, {"code": 109, "data": False, "message": "no authorization"})


async def new_search(server: Server, name: str = "finder", **config: Any) -> str:
    return (await server.data("POST", "/searches", {"name": name, "search_config": config}))["search_id"]


async def test_a_search_is_saved_with_the_defaults_and_shown(server: Server) -> None:
    search = await new_search(server, "Finder", top_k=7)
    shown = await server.data("GET", f"/searches/{search}")
    assert shown.keys() == {
        "id", "avatar", "tenant_id", "name", "description", "created_by", "search_config", "status",
        "create_time", "create_date", "update_time", "update_date",
    }  # fmt: skip
    assert shown["search_config"] == {**SEARCH_DEFAULTS, "top_k": 7}
    again = (await server.data("POST", "/searches", {"name": "finder"}))["search_id"]
    assert (await server.data("GET", f"/searches/{again}"))["name"] == "finder(1)"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({}, 101, "required argument are missing: name; "),
        ({"name": 7}, 102, "Search name must be string."),
        ({"name": "  "}, 102, "Search name can't be empty."),
        ({"name": "x" * 256}, 102, "Search name length is 256 which is large than 255."),
        ({"name": "x", "search_config": []}, 102, "search_config must be a JSON object"),
    ],
)
async def test_a_search_is_refused_with_the_contracts_text(server: Server, body: dict[str, Any], code: int, message: str) -> None:
    assert await server.call("POST", "/searches", body) == (400, {"code": code, "data": None, "message": message})


async def test_a_change_merges_the_settings(server: Server) -> None:
    search = await new_search(server, top_k=7)
    await new_search(server, "other")
    path = f"/searches/{search}"
    changed = await server.data("PUT", path, {"name": "new", "search_config": {"keyword": True}, "description": "d"})
    assert (changed["name"], changed["description"]) == ("new", "d")
    assert changed["search_config"] == {**SEARCH_DEFAULTS, "top_k": 7, "keyword": True}
    for body, status, message in (
        ({"name": "x"}, 400, "required argument are missing: search_config; "),
        ({"name": "OTHER", "search_config": {}}, 409, "Duplicated search name."),
        ({"name": "x" * 129, "search_config": {}}, 400, "Search name length is 129 which is large than 128."),
        ({"name": "x", "search_config": "c"}, 400, "search_config must be a JSON object"),
    ):
        found = await server.call("PUT", path, body)
        assert (found[0], found[1]["message"]) == (status, message)


async def test_unknown_and_foreign_searches_look_the_same(server: Server) -> None:
    search = await new_search(server)
    for one, key in (("0" * 32, None), (search, server.other_key)):
        found = await server.call("GET", f"/searches/{one}", key=key)
        assert found == (403, {"code": 103, "data": False, "message": "Has no permission for this operation."})
        for method, path in (("PUT", ""), ("DELETE", ""), ("POST", "/completions"), ("POST", "/completion")):
            body = {"name": "x", "search_config": {}} | QUESTION
            assert await server.call(method, f"/searches/{one}{path}", body, key=key) == REFUSED
    assert await server.data("DELETE", f"/searches/{search}") is True
    assert await server.call("DELETE", f"/searches/{search}") == REFUSED


async def test_lists_have_their_own_fields(server: Server) -> None:
    for name in ("Alpha", "Beta"):
        await new_search(server, name)
    found = await server.data("GET", "/searches?keywords=ALP")
    assert (found["total"], found["search_apps"][0]["name"]) == (1, "Alpha")
    assert found["search_apps"][0].keys() == {
        "id", "avatar", "tenant_id", "name", "description", "created_by", "status", "update_time", "create_time", "nickname",
        "tenant_avatar",
    }  # fmt: skip
    assert (await server.data("GET", "/searches?page=2&page_size=1"))["total"] == 2
    assert (await server.data("GET", "/searches?owner_ids=x")) == {"search_apps": [], "total": 0}


async def test_a_question_to_a_search_is_answered_as_a_stream(server: Server) -> None:
    server.says("Water boils at 100 °C ", "at sea level.")
    dataset = await server.dataset("facts", WATER, IRON)
    search = await new_search(server, kb_ids=[dataset], similarity_threshold=0.0)
    *deltas, final, last = await server.stream(f"/searches/{search}/completions", QUESTION | {"kb_ids": ["ignored"]})
    assert all(frame["data"].keys() == {"answer", "reference", "final"} for frame in deltas)
    assert all((frame["data"]["reference"], frame["data"]["final"]) == ({}, False) for frame in deltas)
    assert "".join(frame["data"]["answer"] for frame in deltas) == "Water boils at 100 °C at sea level [ID:0]."
    assert (final["data"]["answer"], final["data"]["final"], last) == ("", True, LAST)
    assert final["data"]["reference"]["chunks"][0]["content"] == WATER
    asked = server.vendor.requests[-1].body
    assert (asked["temperature"], asked["top_p"], asked["frequency_penalty"], asked["presence_penalty"]) == (0.1, 0.3, 0.7, 0.4)


async def test_a_question_needs_datasets_of_the_callers_own(server: Server) -> None:
    search = await new_search(server)
    path = f"/searches/{search}/completions"
    foreign = await server.dataset("foreign", WATER, tenant=server.other_tenant)
    for body, status, code, message in (
        ({}, 400, 101, "required argument are missing: question; "),
        (QUESTION, 400, 102, "`kb_ids` is required."),
        (QUESTION | {"kb_ids": []}, 400, 102, "`kb_ids` is required."),
        (QUESTION | {"kb_ids": [foreign]}, 404, 102, f"You don't own the dataset {foreign}"),
    ):
        assert await server.call("POST", path, body) == (status, {"code": code, "data": None, "message": message})


async def test_a_search_without_a_model_quotes(server: Server) -> None:
    dataset = await server.dataset("facts", WATER, IRON)
    search = await new_search(server, chat_id=NO_MODEL, similarity_threshold=0.0)
    frames = await server.stream(f"/searches/{search}/completion", QUESTION | {"kb_ids": [dataset]})
    text = "".join(frame["data"]["answer"] for frame in frames[:-2])
    assert text.startswith(NOTICE)
    assert "Water boils at 100 °C at sea level. [ID:" in text


@pytest.mark.parametrize("path", ["/chat/recommendation", "/chat/recommandation", "/sessions/related_questions"])
async def test_related_questions_are_the_models_numbered_lines(server: Server, path: str) -> None:
    server.says("1. Why?\n", "talk\n2. How?")
    assert await server.data("POST", path, QUESTION) == ["Why?", "How?"]
    assert await server.call("POST", path, {}) == (
        400, {"code": 101, "data": None, "message": "required argument are missing: question; "},
    )  # fmt: skip


async def test_without_a_model_related_searches_are_the_headings_found(server: Server) -> None:
    dataset = await server.dataset("facts", WATER)
    search = await new_search(server, chat_id=NO_MODEL, kb_ids=[dataset], similarity_threshold=0.0)
    assert await server.data("POST", "/chat/recommendation", QUESTION | {"search_id": search}) == ["Part"]
    assert (await server.call("POST", "/chat/recommendation", QUESTION | {"search_id": "0" * 32}))[0] == 403


async def test_a_mind_map_is_a_tree_of_ids(server: Server) -> None:
    dataset = await server.dataset("facts", WATER)
    server.says("- boiling\n", "  - 100 °C\n")
    tree = await server.data("POST", "/chat/mindmap", QUESTION | {"kb_ids": [dataset]})
    assert tree == {"id": "root", "children": [{"id": "boiling", "children": [{"id": "100 °C", "children": []}]}]}


async def test_a_mind_map_without_a_model_is_made_of_the_documents(server: Server) -> None:
    dataset = await server.dataset("facts", WATER)
    search = await new_search(server, chat_id=NO_MODEL, kb_ids=[dataset], similarity_threshold=0.0)
    tree = await server.data("POST", "/chat/mindmap", QUESTION | {"kb_ids": [], "search_id": search})
    assert [(child["id"], child["children"][0]["id"]) for child in tree["children"]] == [("facts.md", "Part")]


async def test_a_mind_map_is_refused_with_the_contracts_texts(server: Server) -> None:
    foreign = await server.dataset("foreign", WATER, tenant=server.other_tenant)
    for body, status, code, message in (
        ({}, 400, 101, "required argument are missing: question,kb_ids; "),
        (QUESTION, 400, 101, "required argument are missing: kb_ids; "),
        (QUESTION | {"kb_ids": []}, 400, 101, "No KB selected"),
        (QUESTION | {"kb_ids": [foreign]}, 404, 102, f"You don't own the dataset {foreign}"),
    ):
        assert await server.call("POST", "/chat/mindmap", body) == (status, {"code": code, "data": None, "message": message})
