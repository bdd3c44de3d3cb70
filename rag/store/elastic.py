"""The connection to an Elasticsearch cluster: requests within the deadline, and its failures in our own words.

The only module that knows the client. It is synchronous and meant for the search lane: as many connections as the lane has
threads. Of the client it takes the reading of addresses and the pool of hosts, which leaves those alone that do not answer. Requests
are sent as bytes that the caller encoded, over `elastic_node.py`: the client's own way to a host costs more than the request.
"""

import base64
import math
import ssl
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
from elasticsearch import Elasticsearch

from rag.breaker import NotWaitedFor, ServiceBreaker, Unanswered
from rag.deadline import seconds_left
from rag.errors import DeadlineExceeded, SettingsError, Unavailable
from rag.ports import Clock
from rag.store import elastic_cbor
from rag.store.elastic_node import Answer, Node

_JSON = "application/vnd.elasticsearch+json; compatible-with=8"
_NDJSON = "application/vnd.elasticsearch+x-ndjson; compatible-with=8"
_CBOR = "application/vnd.elasticsearch+cbor; compatible-with=8"
# Statuses after which another host may have a better answer, and those that say nothing against the host.
_ASK_ANOTHER = (429, 502, 503, 504)
_OWN_FAULT = (400, 401, 402, 403, 404, 409)
_LEAST_SECONDS = 0.05
# That nothing came in less time says more about the caller's deadline than about the cluster.
_TELLING_SECONDS = 1.0
# The caller's own clock runs out with ours: what is left of the time is for telling why.
_SHARE_OF_TIME = 0.9
# However long it was away, nobody waits longer than this for a cluster that is back.
_LONGEST_REST_SECONDS = 10.0

FULL_DISK = "cluster_block_exception"
NO_INDEX = "index_not_found_exception"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its status, and what it says, decoded; None for what is neither JSON nor CBOR."""

    status: int
    body: Any

    @property
    def error(self) -> str:
        """The type of the error that the answer reports, "" without one."""
        return error_type(self.body.get("error")) if isinstance(self.body, dict) else ""


class Cluster:
    """A cluster of one or several hosts. Thread-safe.

    Every request ends within `timeout_seconds`, or within what is left of the caller's deadline. A cluster that keeps failing is
    left alone for a while (`rag.breaker`). A host that does not answer is avoided for a while by the client.
    """

    def __init__(
        self, hosts: Collection[str], *, api_key: str = "", user: str = "", password: str = "", ca_file: Path | None = None,
        connections: int = 8, timeout_seconds: float = 15.0, clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        """Connects with the first request. Raises `SettingsError` for hosts or a CA file that cannot be used. `clock` is its breaker's."""
        if any("@" in host for host in hosts):  # the client would put them aside, and our requests would come without
            raise SettingsError("elasticsearch_hosts name no users: set elasticsearch_user and elasticsearch_password, or an API key")
        self._timeout_seconds = timeout_seconds
        self._authorization = ""
        if api_key:
            self._authorization = f"authorization: ApiKey {api_key}\r\n"
        elif user:
            self._authorization = f"authorization: Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}\r\n"
        if ca_file is not None and not ca_file.is_file():
            raise SettingsError(f"elasticsearch_ca_file: {ca_file} does not exist")
        try:
            tls = any(host.startswith("https:") for host in hosts)
            client = Elasticsearch(
                list(hosts),
                node_class=Node,
                connections_per_node=connections,
                max_dead_node_backoff=10.0,
                **({"ssl_context": ssl.create_default_context(cafile=ca_file)} if tls else {}),
            )
        except (ValueError, OSError) as exc:
            raise SettingsError(f"elasticsearch_hosts or elasticsearch_ca_file: {exc}") from None
        self._client, self._hosts = client, client.transport.node_pool
        self._more_hosts = len(list(hosts)) - 1
        self.breaker = ServiceBreaker("elasticsearch", longest_rest_seconds=_LONGEST_REST_SECONDS, clock=clock)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, params: Mapping[str, str] | None = None, lines: bool = False,
        expected: Collection[int] = (), repeatable: bool = True, cbor: bool = False,
    ) -> Reply:  # fmt: skip
        """The answer to a request. `lines`: the body is newline-delimited JSON. `expected` statuses are answers beside 2xx.

        `cbor` asks for an answer in it, with lists of hits as `elastic_cbor.decoded` gives them. A request that must not be done
        twice is not `repeatable`: it is not sent to another host when one breaks off. Raises `Unavailable`, `DeadlineExceeded` when
        no time is left.
        """
        headers = f"accept: {_CBOR if cbor else _JSON}\r\n{self._authorization}"
        if body is not None:
            headers += f"content-type: {_NDJSON if lines else _JSON}\r\n"
        target = f"{path}?{urlencode(params)}" if params else path
        with self.breaker.watch():
            reply = self._send(method, target, body, headers, self._seconds(), self._more_hosts * repeatable)
        if 200 <= reply.status < 300 or reply.status in expected:
            return reply
        raise failure(reply.status, reply.error)

    def probe(self, path: str, seconds: float) -> Reply:
        """The answer to a GET, also while the breaker refuses calls, and any status. Raises `Unavailable`."""
        return self._send("GET", path, None, f"accept: {_JSON}\r\n{self._authorization}", seconds, self._more_hosts)

    def _seconds(self) -> float:
        left = seconds_left()
        if left <= _LEAST_SECONDS:
            raise DeadlineExceeded("no time is left to ask elasticsearch")
        return min(self._timeout_seconds, left * _SHARE_OF_TIME if math.isfinite(left) else math.inf)

    def _send(self, method: str, target: str, body: bytes | None, headers: str, seconds: float, retries: int) -> Reply:
        try:
            answer = self._from_a_host(method, target, body, headers, seconds, retries)
            reply = Reply(answer.status, _decoded(answer))
        except TimeoutError as exc:
            told = Unanswered if seconds >= _TELLING_SECONDS else NotWaitedFor
            raise told("elasticsearch gave no answer in time") from exc
        except (OSError, ValueError) as exc:
            raise Unanswered("elasticsearch cannot be reached, or does not answer as elasticsearch does") from exc
        if 200 <= reply.status < 300 and answer.headers.get("x-elastic-product") != "Elasticsearch":
            raise Unanswered("what answers at elasticsearch_hosts is not elasticsearch")
        if reply.status in (502, 504) or (reply.status == 503 and not isinstance(reply.body, dict)):
            raise Unanswered("elasticsearch cannot be reached behind its proxy")
        return reply

    def _from_a_host(self, method: str, target: str, body: bytes | None, headers: str, seconds: float, retries: int) -> Answer:
        """The answer of a host that is well, or after `retries` others any. Raises `TimeoutError` after `seconds`, else `OSError`."""
        end = time.monotonic() + seconds
        while True:
            if (left := end - time.monotonic()) <= 0:
                raise TimeoutError
            host = self._hosts.get()
            try:
                answer = host.ask(method, target, body, headers, seconds=left)
            except TimeoutError:
                self._hosts.mark_dead(host)
                raise
            except OSError:
                self._hosts.mark_dead(host)
                if not retries:
                    raise
            else:
                well = 200 <= answer.status < 300 or answer.status in _OWN_FAULT
                (self._hosts.mark_live if well else self._hosts.mark_dead)(host)
                if answer.status not in _ASK_ANOTHER or not retries:
                    return answer
            retries -= 1


def _decoded(answer: Answer) -> Any:
    """What an answer says, None for what is neither JSON nor CBOR. Raises `ValueError`."""
    kind = answer.headers.get("content-type", "")
    if answer.body and "cbor" in kind:
        return elastic_cbor.decoded(answer.body)
    return orjson.loads(answer.body) if answer.body and "json" in kind else None


def error_type(error: Any) -> str:
    """The type of an error object, the cause of a failed search phase in its place."""
    if not isinstance(error, dict):
        return ""
    causes = error.get("root_cause") or ()
    if error.get("type") == "search_phase_execution_exception" and causes:
        return str(causes[0].get("type", ""))
    return str(error.get("type", ""))


_REASONS = {
    FULL_DISK: "the elasticsearch index takes no writes now (a disk may be full)",
    "no_shard_available_action_exception": "a shard of the elasticsearch index is not available",
    "unavailable_shards_exception": "a shard of the elasticsearch index is not available",
    "circuit_breaking_exception": "elasticsearch is short of memory",
    "master_not_discovered_exception": "the elasticsearch cluster has no master",
    NO_INDEX: "the elasticsearch index has gone",
}


def failure(status: int, kind: str) -> Unavailable:
    """The error of an answer, in words that hold nothing of the answer but its status and the type of its error."""
    if kind in _REASONS:
        return Unavailable(_REASONS[kind])
    if status in (401, 403):
        return Unavailable("elasticsearch does not accept our credentials, or they allow too little")
    if status == 429:
        return Unavailable("elasticsearch is overloaded")
    if status == 503:
        return Unavailable("a shard of the elasticsearch index is not available")
    return Unavailable(f"elasticsearch refused a request (status {status}, {kind or 'no type'})")
