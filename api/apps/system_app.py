"""Routes about the server itself: its health, its version, its figures, the caller's API keys."""

import time
from dataclasses import asdict
from typing import Any, cast

from quart import Response, current_app

from api.auth import KeyRing
from api.context import parts, tenant_id
from api.figures import figures
from api.metrics import CONTENT_TYPE
from api.readiness import PartState, Readiness
from api.respond import http_date, json_response, success
from api.routes import Routes
from api.siblings import Member
from db.services import tenant_service
from db.services.tenant_service import KeyRecord

# what clients of the contract's API take as the level that they may rely on
API_VERSION = "v0.27.0"

api = Routes("system", kind="J")
root = Routes("health", base="", kind="J")


@root.route("GET", "/healthz", public=True)
async def healthz() -> Response:
    """Whether the process answers at all."""
    return json_response({"status": "ok"})


@root.route("GET", "/readyz", public=True)
async def readyz() -> Response:
    """Whether an upload, a search and a chat would work now; 503 with the parts in the way if not."""
    states = await _readiness().states()
    ready = all(state.ok for state in states.values())
    body = {"status": "ok" if ready else "nok", "parts": {name: _state_reply(state) for name, state in states.items()}}
    return json_response(body, 200 if ready else 503, None if ready else {"Retry-After": "1"})


@root.route("GET", "/metrics", public=True, reply_type="text/plain")
async def metrics() -> Response:
    """The server's figures for Prometheus, those of all its workers."""
    text = await figures(parts())
    member = cast(Member | None, current_app.extensions.get("member"))
    return Response(text if member is None else await member.figures(text), content_type=CONTENT_TYPE)


@api.route("GET", "/system/ping", public=True, reply_type="text/plain")
async def ping() -> Response:
    """`pong`."""
    return Response("pong", content_type="text/plain; charset=utf-8")


@api.route("GET", "/system/version", public=True, data=str)
async def version() -> Response:
    """The level of the API that is spoken."""
    return success(API_VERSION)


@api.route("GET", "/system/config", public=True, data=dict[str, Any])
async def config() -> Response:
    """What a login page would offer: nobody registers here, keys are made by `millrace keys`."""
    return success({"registerEnabled": 0, "disablePasswordLogin": True})


@root.route("GET", "/v1/system/healthz", public=True)
async def legacy_healthz() -> Response:
    """The health of each part, where older clients look for it."""
    return await system_healthz()


@api.route("GET", "/system/healthz", "/v1/system/healthz", public=True)
async def system_healthz() -> Response:
    """The health of each part, without envelope; 503 if one is not well, also a Redis that the server can do without."""
    states, redis = await _readiness().states(), await _redis()
    names = {"db": "database", "doc_engine": "store", "storage": "blobs"}
    found = {wire: states[name] for wire, name in names.items()}
    failed = {wire: {"elapsed": f"{state.elapsed_ms:.1f}", "error": state.reason} for wire, state in found.items() if not state.ok}
    if redis["status"] != "green":
        failed["redis"] = {"elapsed": redis["elapsed"], "error": redis["error"]}
    body: dict[str, Any] = {wire: "nok" if wire in failed else "ok" for wire in (*names, "redis")}
    body["status"] = "nok" if failed else "ok"
    return json_response(body | ({"_meta": failed} if failed else {}), 503 if failed else 200)


@api.route("GET", "/system/status", data=dict[str, Any])
async def status() -> Response:
    """The parts by name, with the time each took to answer."""
    states = await _readiness().states()
    engine = await parts().lanes.search.run(parts().store.health)
    store = _status_of(states["store"])
    data = {
        "doc_engine": store | engine if states["store"].ok else engine | store,
        "storage": {"storage": "s3" if parts().settings.blob_url else "local", **_status_of(states["blobs"])},
        "database": {"database": parts().session.kind, **_status_of(states["database"])},
        "redis": await _redis(),
        "task_executor_heartbeats": {},
    }
    return success(data)


@api.route("GET", "/system/tokens", data=list[dict[str, Any]])
async def list_tokens() -> Response:
    """The tenant's API keys, newest first."""
    keys = await parts().session.read(tenant_service.list_keys, tenant_id())
    return success([_key_reply(key) for key in keys])


@api.route("POST", "/system/tokens", data=dict[str, Any])
async def create_token() -> Response:
    """Make another API key for the tenant."""
    key = await parts().session.write(tenant_service.create_key, tenant_id())
    reply = _key_reply(key)
    made = {name: reply[name] for name in ("tenant_id", "token", "beta", "create_time", "create_date")}
    return success(made | {"update_time": None, "update_date": None})


@api.route("DELETE", "/system/tokens/<token>", data=bool)
async def delete_token(token: str) -> Response:
    """Delete one of the tenant's API keys; true for an unknown one, too."""
    await parts().session.write(tenant_service.delete_key, tenant_id(), token)
    cast(KeyRing, current_app.extensions["keys"]).forget(token)
    return success(True)


async def _redis() -> dict[str, str]:
    """Without Redis the server only takes longer: it is never red."""
    memory, started = parts().memory, time.perf_counter()
    if memory is None or not parts().settings.redis_url:
        return {"status": "green", "elapsed": "0.0", "note": "not used"}
    health = await memory.cache.health()
    return health | {"elapsed": f"{(time.perf_counter() - started) * 1000:.1f}"}


def _readiness() -> Readiness:
    return cast(Readiness, current_app.extensions.setdefault("readiness", Readiness(parts())))


def _state_reply(state: PartState) -> dict[str, Any]:
    reply = asdict(state)
    return reply if reply["reason"] else {"ok": True, "elapsed_ms": state.elapsed_ms}


def _status_of(state: PartState) -> dict[str, Any]:
    reply: dict[str, Any] = {"status": "green" if state.ok else "red", "elapsed": f"{state.elapsed_ms:.1f}"}
    return reply | ({"note" if state.ok else "error": state.reason} if state.reason else {})


def _key_reply(key: KeyRecord) -> dict[str, Any]:
    return {
        "tenant_id": key.tenant_id,
        "token": key.token,
        "beta": key.beta,
        "dialog_id": None,
        "source": None,
        "create_time": key.create_time,
        "create_date": http_date(key.create_time),
        "update_time": key.update_time,
        "update_date": http_date(key.update_time),
    }
