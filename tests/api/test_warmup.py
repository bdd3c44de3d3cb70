"""What a server has loaded when its start is over."""

import threading
from pathlib import Path

import pytest

from api import token_counters
from api.warmup import Warmup
from rag.nlp.tokens import TokenCounter
from tests.api.conftest import Server


async def test_the_tokenizer_is_read_once_and_not_on_the_loop(api: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    read_on = []

    class Watched(TokenCounter):
        def __init__(self, path: Path) -> None:
            read_on.append(threading.current_thread().name)
            super().__init__(path)

    token_counters.token_counter.cache_clear()
    monkeypatch.setattr(token_counters, "TokenCounter", Watched)
    warmup = Warmup(api.parts.models, api.parts.lanes.model)
    await warmup.run()
    assert warmup.reason == ""
    dataset = await api.dataset()
    document = await api.document(dataset)
    await api.call("POST", f"/datasets/{dataset}/documents/{document}/chunks", {"content": "Iron melts."})
    chat = (await api.call("POST", "/chats", {"name": "chat"})).data["id"]
    await api.call("POST", f"/chats/{chat}/completions", {"question": "Why?", "stream": False})
    token_counters.token_counter.cache_clear()
    assert len(read_on) == 1
    assert read_on[0].startswith("millrace-model")
