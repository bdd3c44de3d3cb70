"""The application core: keys, paths, bodies, limits and errors, whatever the route (contract, 1 and 2)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from peewee import OperationalError
from quart import Response
from structlog.testing import capture_logs

from api import respond
from api.app import Application, create_app
from api.auth import REMEMBER_SECONDS, KeyRing, token_of
from api.body import tolerant
from api.context import keys, parts, tenant_id
from api.errors import TABLE, ApiError, failure_of
from api.routes import Routes
from db.services import tenant_service
from rag import errors
from rag.errors import MillraceError
from tests.api.conftest import Server, multipart

UNAUTHORIZED = b'{"code":401,"data":null,"message":"<Unauthorized \'401: Unauthorized\'>"}'
MALFORMED = "Malformed JSON syntax: Missing commas/brackets or invalid encoding"

probe = Routes("probe")
probe_j = Routes("probe_j", kind="J")
probe_openai = Routes("probe_openai", base="/v1", kind="OpenAI")
raised: list[Exception] = []


@probe.route("POST", "/echo", "/echo-alias")
async def echo() -> Response:
    """Answer the body."""
    return respond.reply(await tolerant())


@probe.route("GET", "/raise")
async def fail() -> Response:
    """Raise."""
    raise raised[-1]


@probe_j.route("GET", "/raise_j")
async def fail_j() -> Response:
    """Raise."""
    raise raised[-1]


@probe_openai.route("GET", "/raise")
async def fail_openai() -> Response:
    """Raise."""
    raise raised[-1]


@probe.route("GET", "/hang")
async def hang() -> Response:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


@probe.route("GET", "/forget")
async def forget() -> Response:
    """Forget a key."""
    await asyncio.sleep(0)
    keys().forget("")
    return respond.reply(tenant_id())


@probe.route("GET", "/broken-database")
async def broken_database() -> Response:
    """Ask a database that fails."""

    def fail() -> None:
        raise OperationalError("disk I/O error")

    await parts().session.read(fail)
    raise AssertionError


@pytest.fixture
def core(api: Server) -> Server:
    """The same server with routes that do as they are told."""
    app = create_app(api.parts, (probe, probe_j, probe_openai))
    return Server(app, api.parts, api.tenant, api.key, api.other_tenant, api.other_key)


# ---------------------------------------------------------------------------------------------------- keys
@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {}", "{}"])
async def test_a_key_is_taken_in_every_form(core: Server, form: str) -> None:
    response = await core.client.get("/api/v1/forget", headers={"Authorization": form.format(core.key)})
    assert (await response.get_json())["data"] == core.tenant


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer x", "Basic {}", "Bearer ragflow-" + "x" * 43, "Bearer {}x"])
async def test_without_a_valid_key_the_answer_is_literal(core: Server, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.format(core.key)}
    for path in ("/api/v1/forget", "/api/v1/raise_j"):
        response = await core.client.get(path, headers=headers)
        assert (response.status_code, await response.get_data()) == (401, UNAUTHORIZED)


async def test_openai_clients_get_their_own_form_of_401(core: Server) -> None:
    response = await core.client.get("/v1/raise")
    assert response.status_code == 401
    assert await response.get_json() == {
        "error": {"message": "invalid API key", "type": "authentication_error", "code": 401, "param": None}
    }


async def test_authentication_comes_before_the_body(core: Server) -> None:
    response = await core.client.post("/api/v1/echo", data=b"{" * (9 << 20))
    assert response.status_code == 401


async def test_a_key_is_remembered_for_some_seconds_and_forgotten_at_once(api: Server) -> None:
    now = 0.0
    ring = KeyRing(api.parts.session, lambda: now)
    assert await ring.tenant_of(api.key) == api.tenant
    await api.parts.session.write(tenant_service.delete_key, api.tenant, api.key)
    now = REMEMBER_SECONDS - 0.1
    assert await ring.tenant_of(api.key) == api.tenant
    now = REMEMBER_SECONDS + 0.1
    with pytest.raises(errors.Unauthenticated):
        await ring.tenant_of(api.key)
    assert await ring.tenant_of(api.other_key) == api.other_tenant
    await api.parts.session.write(tenant_service.delete_key, api.other_tenant, api.other_key)
    ring.forget(api.other_key)
    with pytest.raises(errors.Unauthenticated):
        await ring.tenant_of(api.other_key)


@pytest.mark.parametrize("value", [None, "", "ragflow-short", "ragflow-" + "é" * 43, "ragflow-" + "x" * 44])
def test_what_cannot_be_a_key_is_not_looked_up(value: str | None) -> None:
    with pytest.raises(errors.Unauthenticated):
        token_of(value)


# ---------------------------------------------------------------------------------------------------- paths
@pytest.mark.parametrize("path", ["/api/v1/echo", "/api/v1/echo/", "//api//v1///echo//", "/api/v1/echo-alias"])
async def test_slashes_do_not_matter(core: Server, path: str) -> None:
    response = await core.client.post(path, headers={"Authorization": core.key}, json={"a": 1})
    assert await response.get_json() == {"code": 0, "data": {"a": 1}}


async def test_unknown_paths_and_methods(core: Server) -> None:
    unknown = await core.call("GET", "/nowhere", key="none")
    assert unknown.status == 404
    assert unknown.body == {"code": 404, "message": "Not Found: /api/v1/nowhere", "data": None, "error": "Not Found"}
    wrong = await core.call("GET", "/echo", key="none")
    assert wrong.outcome == (100, 405, "Method Not Allowed: GET /api/v1/echo")
    assert set(wrong.headers["allow"].split(", ")) == {"OPTIONS", "POST"}


async def test_browsers_may_call_from_anywhere(core: Server) -> None:
    preflight = await core.call("OPTIONS", "/echo", key="none")
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, "*")
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    for path in ("/forget", "/nowhere"):
        assert (await core.call("GET", path)).headers["access-control-allow-origin"] == "*"


async def test_a_request_keeps_its_id(core: Server) -> None:
    given = await core.call("GET", "/forget", headers={"X-Request-Id": "abc-1.2"})
    assert given.headers["x-request-id"] == "abc-1.2"
    for unfit in ("a b", "x" * 65, 'a"b'):
        made = (await core.call("GET", "/forget", headers={"X-Request-Id": unfit})).headers["x-request-id"]
        assert made != unfit
        assert len(made) == 16


# ---------------------------------------------------------------------------------------------------- bodies
@pytest.mark.parametrize(
    ("data", "content_type", "body"),
    [
        (b"", "application/json", {}),
        (b" \n", None, {}),
        (b"null", "application/json", {}),
        (b'{"a": "\xc3\xa4"}', "text/plain", {"a": "ä"}),
        (b'{"a":1}', None, {"a": 1}),
        (b"a=1&b=%C3%A4&c=", "application/x-www-form-urlencoded", {"a": "1", "b": "ä", "c": ""}),
        (*multipart(("a", None, b"1"), ("file", "x.txt", b"content"), ("b", None, "ä".encode())), {"a": "1", "b": "ä"}),
    ],
)
async def test_tolerant_bodies(core: Server, data: bytes, content_type: str | None, body: dict[str, Any]) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert (await core.call("POST", "/echo", data=data, headers=headers)).data == body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", MALFORMED),
        (b'{"a": \xff}', MALFORMED),
        (b"a=1", MALFORMED),
        (b"[" * 100_000, MALFORMED),
        (b'"text"', "JSON payload must be an object."),
        (b"1", "JSON payload must be an object."),
        (b"[]", "JSON payload must be an object."),
    ],
)
async def test_bodies_that_are_no_objects(core: Server, data: bytes, message: str) -> None:
    answer = await core.call("POST", "/echo", data=data, headers={"Content-Type": "application/json"})
    assert answer.outcome == (101, 400, message)


class TestLimits:
    @pytest.fixture
    def server_settings(self, tmp_path: Path) -> dict[str, Any]:
        return {"data_dir": tmp_path, "max_body_bytes": 100, "request_timeout_seconds": 0.05}

    async def test_a_body_over_the_limit_is_refused(self, core: Server) -> None:
        headers = {"Content-Type": "application/json"}
        assert (await core.call("POST", "/echo", data=b'"' + b"x" * 98 + b'"', headers=headers)).status == 400
        answer = await core.call("POST", "/echo", data=b"x" * 101, headers=headers)
        assert answer.outcome == (101, 413, "the request body exceeds 100 bytes")

    async def test_an_announced_length_is_refused_before_a_byte_is_read(self, core: Server) -> None:
        assert await _status(core.app, core.key, [], content_length=101) == 413

    async def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_long(self, core: Server) -> None:
        pieces = [b"x" * 60] * 2
        assert await _status(core.app, core.key, pieces) == 413

    async def test_an_early_answer_ends_though_the_body_still_comes(self, core: Server) -> None:
        """The server's queue of ten messages is full when the answer is ready, and its last message needs a place in it."""
        queue: asyncio.Queue[Any] = asyncio.Queue(10)
        ended = asyncio.Event()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body" and not message["more_body"]:
                await queue.put({"type": "http.disconnect"})
                ended.set()

        async def client() -> None:
            for _ in range(1000):
                await queue.put({"type": "http.request", "body": b"x" * (1 << 16), "more_body": True})
            await queue.put({"type": "http.request", "body": b"", "more_body": False})

        sending = asyncio.ensure_future(client())
        async with asyncio.timeout(10):
            await core.app(_scope(core.key, None), queue.get, send)
            await ended.wait()
            await sending

    async def test_a_body_that_never_ends_meets_the_deadline(self, core: Server) -> None:
        assert await _status(core.app, core.key, [b"{"]) == 503

    async def test_a_handler_over_the_deadline_is_stopped(self, core: Server) -> None:
        answer = await core.call("GET", "/hang")
        assert answer.outcome == (503, 503, "the request took longer than 0.05 seconds")
        assert answer.headers["retry-after"] == "2"


async def _status(app: Application, key: str, pieces: list[bytes], content_length: int | None = None) -> int:
    """The status of a POST whose body is these pieces and never ends."""
    left = list(pieces)
    status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def receive() -> Any:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": True}
        await status
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            status.set_result(message["status"])

    await app(_scope(key, content_length), receive, send)
    return status.result()


def _scope(key: str, content_length: int | None) -> Any:
    headers = [(b"host", b"x"), (b"authorization", key.encode()), (b"content-type", b"application/json")]
    if content_length is not None:
        headers.append((b"content-length", str(content_length).encode()))
    return {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/api/v1/echo", "query_string": b"",
        "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "extensions": {}, "asgi": {},
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- errors
CASES = [
    (errors.InvalidArgument("size 9 exceeds 8"), 400, 101, "size 9 exceeds 8"),
    (errors.TooLarge("too large"), 413, 101, "too large"),
    (errors.UnsupportedType("no such type"), 415, 101, "no such type"),
    (errors.PermissionDenied("not yours"), 403, 108, "not yours"),
    (errors.NotFound("gone"), 404, 102, "gone"),
    (errors.Conflict("taken"), 409, 102, "taken"),
    (errors.Overloaded("full", 7), 503, 503, "full"),
    (errors.TooManyRequests("your share"), 429, 429, "your share"),
    (errors.Unavailable("down"), 503, 503, "down"),
    (errors.Corrupt("rebuilding"), 503, 503, "rebuilding"),
    (errors.DatabaseUnavailable("locked"), 503, 102, "Database operation failed"),
    (errors.DeadlineExceeded("late"), 503, 503, "late"),
    (errors.ParserKilled("killed"), 400, 102, "killed"),
    (errors.ProviderRefused("refused"), 503, 503, "refused"),
    (errors.ProviderBusy("busy", 0.2), 503, 503, "busy"),
    (errors.ProviderBusy("busy"), 503, 503, "busy"),
    (errors.SettingsError("unset"), 500, 100, "Internal server error"),
    (ValueError("a user's text"), 500, 100, "Internal server error"),
    (ApiError(109, "no authorization", data=False), 403, 109, "no authorization"),
    (ApiError(102, "x", 404), 404, 102, "x"),
]


@pytest.mark.parametrize(("error", "status", "code", "message"), CASES, ids=lambda value: type(value).__name__)
async def test_every_error_has_one_answer_in_every_envelope(core: Server, error: Exception, status: int, code: int, message: str) -> None:
    raised.append(error)
    bare, with_data = [await core.call("GET", path) for path in ("/raise", "/raise_j")]
    openai = await core.client.get("/v1/raise", headers={"Authorization": core.key})
    shown = (await openai.get_json())["error"]
    assert bare.outcome == with_data.outcome == (code, status, message)
    assert "data" in with_data.body
    assert (openai.status_code, shown["message"]) == (status, message)
    waits = {"retry_after_ms"} if status in (429, 503) else set()
    assert set(shown) == {"message", "type", "code", "param"} | waits
    assert waits <= set(bare.body)
    assert ("retry-after" in bare.headers) == ("retry-after-ms" in openai.headers) == bool(waits)


def test_waits_are_whole_seconds_and_at_least_one_and_milliseconds_beside() -> None:
    failures = [failure_of(error) for error in (errors.Overloaded("x", 6.1), errors.ProviderBusy("x", 0.2))]
    assert [failure.headers["Retry-After"] for failure in failures] == ["7", "1"]
    assert [failure.headers["Retry-After-Ms"] for failure in failures] == ["6100", "200"]
    assert [failure.retry_after_ms for failure in failures] == [6100, 200]


def test_every_error_of_the_tree_is_in_the_table_or_below_one_that_is() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MillraceError)}
    for kind in tree - {errors.SettingsError, MillraceError}:
        assert any(ancestor in TABLE for ancestor in kind.__mro__ if issubclass(ancestor, MillraceError)), kind


async def test_an_unexpected_error_is_logged_once_and_not_shown(core: Server) -> None:
    raised.append(ValueError("secret"))
    with capture_logs() as lines:
        answer = await core.call("GET", "/raise", headers={"X-Request-Id": "the-id"})
    assert answer.body == {"code": 100, "message": "Internal server error"}
    assert [(line["event"], line["route"], line["exc_info"]) for line in lines] == [("request failed", "/api/v1/raise", raised[-1])]


async def test_an_expected_error_is_not_logged(core: Server) -> None:
    raised.append(errors.NotFound("gone"))
    with capture_logs() as lines:
        await core.call("GET", "/raise")
    assert lines == []


async def test_a_database_that_cannot_answer_is_a_503_with_its_own_code(core: Server) -> None:
    answer = await core.call("GET", "/broken-database")
    assert answer.outcome == (102, 503, "Database operation failed")
    assert answer.headers["retry-after"] == "2"
