"""/chats/{c}/sessions: every text of the contract, and what a session shows."""

from tests.api.chat.conftest import Server

NO_CHAT = (403, {"code": 109, "data": False, "message": "no authorization"})


async def new_session(server: Server, chat: str, name: str = "New session") -> str:
    return (await server.data("POST", f"/chats/{chat}/sessions", {"name": name}))["id"]


async def test_a_session_opens_with_the_prologue_and_belongs_to_the_caller(server: Server) -> None:
    chat = await server.chat()
    session = await server.data("POST", f"/chats/{chat}/sessions", {"user_id": "ignored"})
    assert session.keys() == {
        "id", "chat_id", "name", "messages", "reference", "user_id", "create_time", "create_date", "update_time", "update_date",
    }  # fmt: skip
    assert (session["name"], session["chat_id"], session["user_id"], session["reference"]) == ("New session", chat, server.tenant, [])
    assert session["messages"] == [{"role": "assistant", "content": "Hi! I'm your assistant. What can I do for you?"}]


async def test_names_are_stripped_cut_and_may_repeat(server: Server) -> None:
    chat = await server.chat()
    path = f"/chats/{chat}/sessions"
    assert (await server.data("POST", path, {"name": "  twice "}))["name"] == "twice"
    assert (await server.data("POST", path, {"name": "twice"}))["name"] == "twice"
    assert (await server.data("POST", path, {"name": "水" * 300}))["name"] == "水" * 255
    for bad in ("", "  ", 7, None, ["x"]):
        assert await server.call("POST", path, {"name": bad}) == (
            400, {"code": 102, "data": None, "message": "`name` can not be empty"},
        )  # fmt: skip


async def test_an_unknown_deleted_or_foreign_chat_comes_first(server: Server) -> None:
    chat, deleted = await server.chat("a"), await server.chat("b")
    session = await new_session(server, chat)
    gone = await new_session(server, deleted)
    await server.data("DELETE", f"/chats/{deleted}")
    for path, key in (
        (f"/chats/{'0' * 32}/sessions", None),
        (f"/chats/{deleted}/sessions", None),
        (f"/chats/{chat}/sessions", server.other_key),
    ):
        for method in ("POST", "GET", "DELETE"):
            assert await server.call(method, path, {"name": 7}, key=key) == NO_CHAT
        for method in ("GET", "PATCH", "PUT"):
            for one in (session, gone):
                assert await server.call(method, f"{path}/{one}", {"messages": 1}, key=key) == NO_CHAT


async def test_one_session_is_shown_with_the_chats_icon(server: Server) -> None:
    chat, other = await server.chat("a", icon="data:icon"), await server.chat("b")
    session = await new_session(server, chat)
    shown = await server.data("GET", f"/chats/{chat}/sessions/{session}")
    assert (shown["id"], shown["avatar"]) == (session, "data:icon")
    for path, message in (
        (f"/chats/{chat}/sessions/{'0' * 32}", "Session not found!"),
        (f"/chats/{other}/sessions/{session}", "Session does not belong to this chat!"),
    ):
        assert await server.call("GET", path) == (404, {"code": 102, "data": None, "message": message})


async def test_only_the_name_can_be_changed(server: Server) -> None:
    chat = await server.chat()
    session = await new_session(server, chat)
    path = f"/chats/{chat}/sessions/{session}"
    assert (await server.data("PATCH", path, {"name": " renamed ", "unknown": 1}))["name"] == "renamed"
    assert (await server.data("PUT", path, {"name": None}))["name"] == "renamed"
    for body, message in (
        ({"messages": []}, "`messages` cannot be changed"),
        ({"message": 1}, "`messages` cannot be changed"),
        ({"reference": []}, "`reference` cannot be changed"),
        ({"name": "  "}, "`name` can not be empty"),
    ):
        assert await server.call("PATCH", path, body) == (400, {"code": 102, "data": None, "message": message})
    assert (await server.call("PATCH", f"/chats/{chat}/sessions/{'0' * 32}", {}))[1]["message"] == "Session not found!"


async def test_lists_are_filtered_and_have_no_total(server: Server) -> None:
    chat = await server.chat()
    first, second = await new_session(server, chat, "One"), await new_session(server, chat, "Two")
    for query, ids in (
        ("", [second, first]),
        ("?desc=false", [first, second]),
        ("?name=ONE", [first]),
        (f"?id={second}", [second]),
        ("?id=unknown", []),
        ("?name=unknown", []),
        (f"?user_id={server.tenant}", [second, first]),
        ("?user_id=x", []),
        ("?page=2&page_size=1", [first]),
    ):
        assert [session["id"] for session in await server.data("GET", f"/chats/{chat}/sessions{query}")] == ids, query


async def test_bulk_deletes_report_what_failed(server: Server) -> None:
    chat, other = await server.chat("a"), await server.chat("b")
    a, b, c = [await new_session(server, chat) for _ in range(3)]
    foreign = await new_session(server, other)
    path = f"/chats/{chat}/sessions"
    assert await server.data("DELETE", path) == {}
    assert await server.data("DELETE", path, {"ids": []}) == {}
    assert await server.data("DELETE", path, {"ids": [a]}) is True
    status, answer = await server.call("DELETE", path, {"ids": [b, foreign, b]})
    assert (status, answer) == (
        200,
        {
            "code": 0,
            "data": {"success_count": 1, "errors": [f"The chat doesn't own the session {foreign}", f"Duplicate session ids: {b}"]},
            "message": "Partially deleted 1 sessions with 2 errors",
        },
    )
    status, answer = await server.call("DELETE", path, {"ids": ["x", foreign]})
    assert (status, answer["code"]) == (404, 102)
    assert answer["message"] == f"The chat doesn't own the session x; The chat doesn't own the session {foreign}"
    assert await server.data("DELETE", path, {"delete_all": True}) is True
    assert await server.data("GET", path) == []
    assert len(await server.data("GET", f"/chats/{other}/sessions")) == 1
    assert c
