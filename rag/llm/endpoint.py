"""Where a remote model answers: the URL made from what the operator wrote, the key, and the limits of a call."""

import base64
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

from rag.errors import SettingsError

MAX_REPLY_BYTES = 16 << 20

_VERSION_SEGMENT = re.compile(r"v\d[\w.]*")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One URL of one configured model. `model` is its identifier `<name>@<provider>`, which is all that messages show of it.

    `timeout_seconds` bounds an answer that comes in one piece, and in a stream the wait for each event. `stream_seconds` bounds
    a whole stream, `max_reply_bytes` any answer.
    """

    model: str
    url: str
    authorization: str = field(default="", repr=False)
    timeout_seconds: float = 60.0
    stream_seconds: float = 600.0
    max_reply_bytes: int = MAX_REPLY_BYTES


def openai_url(base_url: str, path: str) -> str:
    """The URL of `path` ("chat/completions", "embeddings") under an OpenAI-compatible base.

    The base may be a host, end in a version (`/v1`, `/api/v3`, `/v1beta/openai`), or be the full URL already; a gateway's path
    prefix and a query stay. User and password are left out: see `authorization`. Raises `SettingsError`, `ValueError`.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError("a base_url must begin with http:// or https:// and name a host")
    _ = parts.port  # raises ValueError for one that is not a number
    segments = [segment for segment in parts.path.split("/") if segment]
    wanted = path.split("/")
    if segments[-len(wanted) :] != wanted:
        versioned = any(_VERSION_SEGMENT.fullmatch(segment) for segment in segments)
        segments += [*([] if versioned else ["v1"]), *wanted]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, "/" + "/".join(segments), parts.query, ""))


def authorization(base_url: str, api_key: str | None) -> str:
    """The Authorization header's value: the key, else the user and password of the URL, else "". Raises `SettingsError`."""
    if api_key:
        # Checked here, since a library that cannot send a header shows it in its error.
        if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
            raise SettingsError("its API key holds a blank, a line end or another character that no key can have")
        return f"Bearer {api_key}"
    parts = urlsplit(base_url)
    if parts.username is None:
        return ""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def split_identifier(identifier: str) -> tuple[str, str]:
    """Model and provider of `<model>@<provider>` or `<model>@<instance>@<provider>`; the provider is "" when there is none."""
    rest, _, provider = identifier.rpartition("@")
    if not rest:
        return identifier, ""
    model, _, instance = rest.rpartition("@")
    return model or instance, provider
