"""People who search and chat: users for locust, in the mix that a help desk sees.

`make load` (load/locust_run.py) starts a server with a small corpus and runs this against it. By hand, against any server:

    locust -f load/locustfile.py --host http://127.0.0.1:9380 --scene scene.json --headless -u 100 -r 20 -t 60s

`scene.json` says what there is to ask: see `Scene`. A streamed answer is counted under three names: the request until the answer's
head, "first word" and "whole answer", both from the request's beginning.
"""

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locust import FastHttpUser, between, events, task
from locust.contrib.fasthttp import ResponseContextManager

EVENT_END = b"\n\n"
# a conversation ends after so many turns, and another one begins
TURNS = 5


@dataclass(frozen=True, slots=True)
class Scene:
    """What the users ask: the key, a dataset, chats over it, names of rerankers ([]: none), questions that the dataset can answer."""

    api_key: str
    dataset_id: str
    chat_ids: list[str]
    rerankers: list[str]
    questions: list[str]
    max_tokens: int


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    parser.add_argument("--scene", required=True, help="JSON file that says what there is to ask")


class Person(FastHttpUser):
    """Asks, reads for a while, asks again."""

    abstract = True
    wait_time = between(0.5, 1.5)
    network_timeout = 90.0
    connection_timeout = 10.0

    def on_start(self) -> None:
        """Read what there is to ask."""
        self.scene = Scene(**json.loads(Path(self.environment.parsed_options.scene).read_text("utf-8")))
        self.headers = {"Authorization": f"Bearer {self.scene.api_key}"}

    def question(self) -> str:
        """Any question."""
        return random.choice(self.scene.questions)

    def ask(self, path: str, body: dict[str, Any], name: str) -> dict[str, Any] | None:
        """The answer of a request that is not streamed; None for one that failed. A `code` beside 0 is a failure."""
        with self.client.post(path, json=body, headers=self.headers, name=name, catch_response=True) as response:
            if not judge(response):
                return None
            answer = response.json()
            if answer.get("code"):
                response.failure(f"code {answer['code']}")
                return None
            return answer

    def read_stream(self, path: str, body: dict[str, Any], name: str) -> None:
        """Read an answer's events to their end."""
        started = time.perf_counter()
        with self.client.post(path, json=body, headers=self.headers, name=name, catch_response=True, stream=True) as response:
            if not judge(response):
                return
            first = failure = last = None
            while event := response._response.readline(EVENT_END):
                last = event[5:].strip()
                frame = json.loads(last) if last.startswith(b"{") else {}
                if frame.get("code") or "error" in frame:
                    failure = f"in the stream: {frame.get('message') or frame.get('error')}"
                elif first is None and _text(frame):
                    first = time.perf_counter()
            ended = time.perf_counter()
            if failure is None and (first is None or not _is_end(last)):
                failure = "the stream ended early"
            if failure is not None:
                response.failure(failure)
        exception = None if failure is None else RuntimeError(failure)
        self._report(name, "first word", (first or ended) - started, exception)
        self._report(name, "whole answer", ended - started, exception)

    def _report(self, name: str, what: str, seconds: float, exception: Exception | None) -> None:
        self.environment.events.request.fire(
            request_type=what, name=name, response_time=seconds * 1000, response_length=0, exception=exception, context={}
        )


def judge(response: ResponseContextManager) -> bool:
    """Whether there is an answer. One that a server which is full refuses, with a time to come back, is not the server's failure."""
    if response.status_code in (429, 503) and response.headers.get("retry-after"):
        response.request_meta["name"] += f" (refused, {response.status_code})"
        response.success()
        return False
    if response.status_code != 200:
        response.failure(f"status {response.status_code}: {response.text[:200]}")
        return False
    return True


def _text(frame: dict[str, Any]) -> str:
    """The words in a frame of either wire format."""
    if "choices" in frame:
        return "".join(choice["delta"].get("content") or "" for choice in frame["choices"])
    data = frame.get("data")
    return data.get("answer", "") if isinstance(data, dict) else ""


def _is_end(last: bytes | None) -> bool:
    return last == b"[DONE]" or (last is not None and last.startswith(b"{") and json.loads(last).get("data") is True)


class Searcher(Person):
    """Searches, mostly with a reranker."""

    weight = 4

    @task(3)
    def search_reranked(self) -> None:
        """A search with any of the rerankers."""
        if not self.scene.rerankers:
            return self.search()
        body = {"question": self.question(), "dataset_ids": [self.scene.dataset_id], "rerank_id": random.choice(self.scene.rerankers)}
        self.ask("/api/v1/retrieval", body, "search, reranked")
        return None

    @task(1)
    def search(self) -> None:
        """A search without one."""
        self.ask("/api/v1/retrieval", {"question": self.question(), "dataset_ids": [self.scene.dataset_id]}, "search")


class Chatter(Person):
    """Has conversations, streamed."""

    weight = 4

    def on_start(self) -> None:
        """Begin."""
        super().on_start()
        self.turn, self.chat_id, self.session_id = 0, "", ""

    @task
    def talk(self) -> None:
        """One turn of a conversation."""
        if self.turn % TURNS == 0:
            self.chat_id = random.choice(self.scene.chat_ids)
            opened = self.ask(f"/api/v1/chats/{self.chat_id}/sessions", {"name": "load"}, "open a session")
            self.session_id = opened["data"]["id"] if opened else ""
        self.turn += 1
        body = {"question": self.question(), "session_id": self.session_id, "max_tokens": self.scene.max_tokens}
        self.read_stream(f"/api/v1/chats/{self.chat_id}/completions", body, "chat")


class Patient(Person):
    """Waits for whole answers."""

    weight = 1

    @task
    def ask_whole(self) -> None:
        """An answer in one piece."""
        body = {"question": self.question(), "stream": False, "max_tokens": self.scene.max_tokens}
        self.ask(f"/api/v1/chats/{random.choice(self.scene.chat_ids)}/completions", body, "chat, in one piece")


class Program(Person):
    """A program that speaks OpenAI's API, streamed."""

    weight = 1

    @task
    def complete(self) -> None:
        """A completion over a chat's datasets."""
        body = {"model": "model", "messages": [{"role": "user", "content": self.question()}], "stream": True}
        body |= {"max_tokens": self.scene.max_tokens}
        self.read_stream(f"/api/v1/openai/{random.choice(self.scene.chat_ids)}/chat/completions", body, "chat, as OpenAI")
