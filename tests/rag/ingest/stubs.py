"""Ingestion records and an embedder that live in memory."""

import asyncio
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

DIMENSION = 8


class Records:
    """`IngestRecords` with the one clock that a test moves. `tasks` are due; `events` tells what was written, in order."""

    def __init__(self, *tasks):
        self.tasks = list(tasks)
        self.held = {}
        self.events = []
        self.lines = []
        self.renamed = []
        self.changed = asyncio.Condition()
        self.claim_errors = []

    async def claim(self, worker, lease_seconds, busy_tenants=()):
        if self.claim_errors:
            raise self.claim_errors.pop()
        due = next((number for number, task in enumerate(self.tasks) if task.tenant_id not in busy_tenants), None)
        if due is None:
            return None
        task = replace(self.tasks.pop(due))
        self.held[task.id] = worker
        return task

    async def renew(self, task, worker, lease_seconds):
        return self.held.get(task.id) == worker

    async def report(self, task, worker, progress, message):
        assert 0 <= progress <= 1
        if message:
            self.lines.append(message)
        return self.held.get(task.id) == worker

    async def finish(self, task, worker, *, chunk_count, token_count, message):
        return await self._end(task, worker, ("done", task.document_id, chunk_count, message))

    async def fail(self, task, worker, message, *, retry, counts=True):
        kind = "failed" if not retry else "retry" if counts else "waits"
        return await self._end(task, worker, (kind, task.document_id, 0, message))

    async def rename(self, task):
        self.renamed.append(task.document_id)

    async def give_back(self, task, worker):
        return await self._end(task, worker, ("given back", task.document_id, 0, ""))

    def stop(self, document_id):
        """As a user does it: nobody holds the document's tasks any more."""
        self.held = {task: worker for task, worker in self.held.items() if not task.startswith(document_id)}

    async def _end(self, task, worker, event):
        if self.held.get(task.id) != worker:
            return False
        del self.held[task.id]
        async with self.changed:
            self.events.append(event)
            self.changed.notify_all()
        return True

    async def ended(self, count):
        """Wait until so many tasks have ended, and return what became of them."""
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(lambda: len(self.events) >= count)
        return self.events


class StubEmbedder:
    """Unit vectors that depend on the text alone; can be held up, after `free_calls` batches, and can fail."""

    space = "stub/8"
    dimension = DIMENSION

    def __init__(self, tokenizer_path):
        self.tokenizer_path = Path(tokenizer_path)
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.free_calls = 0
        self.asked = asyncio.Event()
        self.batches = []
        self.at_once = self.most_at_once = 0
        self.errors = []

    async def embed_query(self, text):
        return (await self.embed_documents([text]))[0]

    async def embed_documents(self, texts):
        self.asked.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if len(self.batches) >= self.free_calls:
                await self.may_go_on.wait()
        finally:
            self.at_once -= 1
        if self.errors:
            raise self.errors.pop()
        self.batches.append(list(texts))
        vectors = np.array([np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIMENSION) for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def trust(self, text):
        return 1.0
