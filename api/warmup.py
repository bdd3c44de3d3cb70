"""Loads the default embedding model and its tokenizer while the server starts, so that the first search does not wait for it."""

import asyncio

import structlog

from api.token_counters import token_counter
from rag.errors import MillraceError
from rag.llm.registry import Registry
from rag.threads import Lane

PROBE = "ready"
RETRY_SECONDS = 5.0

log = structlog.get_logger("millrace.warmup")


class Warmup:
    """`reason` says why searches have no embedding model yet; it is empty once they have."""

    def __init__(self, models: Registry, lane: Lane) -> None:
        self._models = models
        self._lane = lane
        self.reason = "the embedding model is being loaded"

    async def run(self) -> None:
        """Try until the model has answered once. A model behind an endpoint may be down for long: searches then use words alone."""
        while self.reason:
            try:
                embedder = self._models.embedder()
                await self._lane.run(token_counter, embedder.tokenizer_path)
                await embedder.embed_query(PROBE)
            except MillraceError as error:
                self.reason = f"the embedding model does not answer: {error}"
                log.warning("embedding model not ready", reason=self.reason)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                self.reason = "the embedding model could not be loaded"
                log.exception("embedding model could not be loaded")
                return
            else:
                self.reason = ""
