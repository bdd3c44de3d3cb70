"""What a request handler knows about the request it serves: the server's parts, the caller's tenant, the request's id."""

from typing import cast

from quart import current_app, g

from api.auth import KeyRing
from api.parts import Parts
from api.upload import Uploader


def parts() -> Parts:
    """The server's parts."""
    return cast(Parts, current_app.extensions["parts"])


def keys() -> KeyRing:
    """The API keys this server knows; tell it to `forget` one that was deleted."""
    return cast(KeyRing, current_app.extensions["keys"])


def uploader() -> Uploader:
    """What streams uploads into the blob store."""
    return cast(Uploader, current_app.extensions["uploader"])


def tenant_id() -> str:
    """The tenant whose API key came with the request; only on routes that ask for a key."""
    return cast(str, g.tenant_id)


def request_id() -> str:
    """The request's id: the caller's `X-Request-Id` where it is a fit one, else ours. Every log line of the request carries it."""
    return cast(str, g.request_id)
