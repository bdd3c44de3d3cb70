"""100 callers at once who search, chat and read streams, over a staged store, an embedder, ten rerankers and a chat model that may fail."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from load.callers import OK, REFUSED, Driven, drive
from load.stage import Play, StagedServer, staged
from load.streams import Streamed, read
from load.vendors import MODELS, RERANKERS, Vendors, vendors

STORE_SECONDS = 0.02
SEARCHERS, WAITERS, READERS = 50, 15, 35
# so that a vendor which hangs is given up before a caller is
VENDOR_TIMEOUT_SECONDS = 2.0
# soon full: what fills for an hour looks like a leak
CACHE_BYTES = 2 << 20
MOST_SEARCHES_A_SECOND, MOST_CHATS_A_SECOND = 250, 60


# how a stream may fail
PLANNED = ("error in the stream", *(f"status {status}" for status in REFUSED))


@dataclass(frozen=True, slots=True)
class Mixed:
    """What the callers of each kind saw."""

    searches: Driven
    whole: Driven
    streamed: Streamed

    def statuses(self) -> Counter[str]:
        """How many answers of each kind: by status, and streams by how they failed."""
        counts = Counter(str(status) for driven in (self.searches, self.whole) for status in driven.statuses)
        counts.update(f"stream: {failure}" for failure in self.streamed.failed)
        counts["stream: whole"] = len(self.streamed.ended) - len(self.streamed.failed)
        return counts

    def unplanned(self) -> int:
        """Answers that nobody may get: 5xx beside 503 with a time to come back, connections that end, streams without an end."""
        bad = sum(status not in (OK, *REFUSED) for driven in (self.searches, self.whole) for status in driven.statuses)
        return bad + sum(failure not in PLANNED for failure in self.streamed.failed)


@contextmanager
def stage(**mood: object) -> Iterator[tuple[StagedServer, Vendors]]:
    """The server and its vendors."""
    with vendors(chat_seconds=0.1, gap_seconds=0.02, words=20, jitter=0.5, **mood) as simulated:
        models = simulated.models(rerankers=len(RERANKERS), timeout_seconds=VENDOR_TIMEOUT_SECONDS)
        with staged(Play({"models": models, "cache_bytes": CACHE_BYTES}, STORE_SECONDS, embeds=True)) as server:
            yield server, simulated


def ask(server: StagedServer, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> Mixed:
    """100 callers for that time; `meanwhile` runs beside them."""
    rerankers = [f"{MODELS.get(provider, 'reranker')}@{provider}" for provider in RERANKERS]
    searches = server.searches(int(MOST_SEARCHES_A_SECOND * (seconds + 1)), *rerankers)
    whole = server.talks("ranked", int(MOST_CHATS_A_SECOND * (seconds + 1)), stream=False)
    streamed = server.talks("ranked", int(MOST_CHATS_A_SECOND * (seconds + 1)))
    with ThreadPoolExecutor(3) as pool:
        running = (
            pool.submit(drive, server.url, searches, SEARCHERS, seconds, ramp_seconds=1.0),
            pool.submit(drive, server.url, whole, WAITERS, seconds, ramp_seconds=1.0),
            pool.submit(read, server.url, streamed, READERS, seconds, 1.0),
        )
        meanwhile()
        return Mixed(*(future.result() for future in running))
