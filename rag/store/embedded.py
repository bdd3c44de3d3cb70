"""The embedded chunk store: one folder a tenant, SQLite as the only truth, tantivy for text, flat float16 files for vectors."""

import builtins
import shutil
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import structlog

from rag.errors import Unavailable
from rag.store.leader import Analyse
from rag.store.record_check import RecordCheck
from rag.store.record_file import reason
from rag.store.rows import check_tenant_id
from rag.store.selection import where
from rag.store.tenant import Tenant
from rag.types import Candidates, Chunk, ChunkSelector, SearchRequest, StoredChunk

_log = structlog.get_logger("millrace.store")
_TURN_SECONDS = 0.02
_CLOSE_SECONDS = 10.0
_NO_NUMBERS, _NO_SCORES = np.empty(0, np.int32), np.empty(0, np.float32)
_NOTHING = Candidates(np.empty(0, np.uint64), [], _NO_NUMBERS, _NO_SCORES, _NO_SCORES, _NO_NUMBERS, _NO_NUMBERS)


class EmbeddedStore:
    """The `ChunkStore` that needs no server. Thread-safe; several processes may serve one folder.

    At most `max_open` tenants stay open. `analyser_version` names the analysis that made `Chunk.terms`; under another
    version the text index is rebuilt, with terms computed anew by `analyse` where it is given. `wait_seconds` bounds the wait
    for the text index.
    """

    def __init__(
        self, folder: Path, *, analyser_version: str = "", analyse: Analyse | None = None, max_open: int = 64, wait_seconds: float = 120.0
    ) -> None:  # fmt: skip
        self._folder = folder
        self._record_check = RecordCheck(folder)
        self._analyser_version, self._analyse = analyser_version, analyse
        self._max_open, self._wait_seconds = max_open, wait_seconds
        self._open: OrderedDict[str, Tenant] = OrderedDict()
        self._users: dict[Tenant, int] = {}
        self._retired: set[Tenant] = set()
        self._state = threading.Condition()
        self._opening = threading.Lock()
        self._work = threading.Event()
        self._busy: set[str] = set()
        self._closed = False
        self._indexer = threading.Thread(target=self._run_indexer, name="millrace-indexer", daemon=True)
        self._indexer.start()

    # ------------------------------------------------------------------------------------------------ the port
    def put(self, tenant_id: str, chunks: Sequence[Chunk], vectors: np.ndarray | None, space: str, *, wait: bool = True) -> None:
        """As `rag.ports.ChunkStore.put`."""
        if not chunks:
            return
        with self._tenant(tenant_id) as tenant:
            self._settle(tenant_id, tenant, tenant.put(chunks, vectors, space), wait=wait)

    def replace(
        self, tenant_id: str, before: Sequence[Chunk], after: Sequence[Chunk], vectors: np.ndarray | None, space: str, *, wait: bool = True
    ) -> builtins.list[bool]:  # fmt: skip
        """As `rag.ports.ChunkStore.replace`."""
        if self._is_absent(tenant_id):
            return [False] * len(before)
        with self._tenant(tenant_id) as tenant:
            replaced, seq = tenant.replace(before, after, vectors, space)
            self._settle(tenant_id, tenant, seq, wait=wait)
            return replaced

    def delete(self, tenant_id: str, selector: ChunkSelector) -> int:
        """As `rag.ports.ChunkStore.delete`."""
        if self._is_absent(tenant_id, selector):
            return 0
        with self._tenant(tenant_id) as tenant:
            count, seq = tenant.record.delete(selector)
            self._settle(tenant_id, tenant, seq, wait=False)  # searches leave out what the record lacks
            return count

    def take(self, tenant_id: str, selector: ChunkSelector) -> builtins.list[Chunk]:
        """As `rag.ports.ChunkStore.take`."""
        if self._is_absent(tenant_id, selector):
            return []
        with self._tenant(tenant_id) as tenant:
            chunks, seq = tenant.record.take(selector)
            self._settle(tenant_id, tenant, seq, wait=False)
            return chunks

    def set_available(self, tenant_id: str, selector: ChunkSelector, available: bool, *, wait: bool = True) -> int:
        """As `rag.ports.ChunkStore.set_available`."""
        if self._is_absent(tenant_id, selector):
            return 0
        with self._tenant(tenant_id) as tenant:
            count, seq = tenant.record.set_available(selector, available)
            self._settle(tenant_id, tenant, seq, wait=wait)
            return count

    def flush(self, tenant_id: str) -> None:
        """As `rag.ports.ChunkStore.flush`."""
        if self._is_absent(tenant_id):
            return
        with self._tenant(tenant_id) as tenant:
            self._settle(tenant_id, tenant, tenant.record.head(), wait=True)

    def search(self, request: SearchRequest) -> Candidates:
        """As `rag.ports.ChunkStore.search`."""
        if self._is_absent(request.tenant_id):
            return _NOTHING
        with self._tenant(request.tenant_id) as tenant:
            found = tenant.search(request)
            if found.degraded or tenant.behind:
                self._notify(request.tenant_id)
            return found

    def get(self, tenant_id: str, chunk_ids: Sequence[str]) -> list[Chunk | None]:
        """As `rag.ports.ChunkStore.get`."""
        if self._is_absent(tenant_id):
            return [None] * len(chunk_ids)
        with self._tenant(tenant_id) as tenant:
            found = tenant.record.get(chunk_ids)
            return [found.get(chunk_id) for chunk_id in chunk_ids]

    def vectors(self, tenant_id: str, chunk_ids: Sequence[str], space: str) -> np.ndarray:
        """As `rag.ports.ChunkStore.vectors`."""
        if self._is_absent(tenant_id):
            return np.empty((len(chunk_ids), 0), np.float32)
        with self._tenant(tenant_id) as tenant:
            return tenant.vectors(chunk_ids, space)

    def list(
        self, tenant_id: str, document_id: str, *, chunk_ids: Sequence[str] | None = None, available: bool | None = None,
        offset: int = 0, limit: int = 30,
    ) -> tuple[int, builtins.list[Chunk]]:  # fmt: skip
        """As `rag.ports.ChunkStore.list`."""
        if self._is_absent(tenant_id):
            return 0, []
        with self._tenant(tenant_id) as tenant:
            return tenant.record.list(document_id, chunk_ids, available, offset, limit)

    def count(self, tenant_id: str, selector: ChunkSelector) -> int:
        """As `rag.ports.ChunkStore.count`."""
        if self._is_absent(tenant_id, selector):
            return 0
        with self._tenant(tenant_id) as tenant:
            return tenant.record.count(selector)

    def scan(self, tenant_id: str, *, after: str = "", size: int = 500) -> Iterator[builtins.list[StoredChunk]]:
        """As `rag.ports.ChunkStore.scan`: each page is read in a transaction of its own."""
        while not self._is_absent(tenant_id):
            with self._tenant(tenant_id) as tenant:
                page = tenant.record.page(after, size)
            if page:
                yield page
            if len(page) < size:
                return
            after = page[-1].chunk.id

    def load(self, tenant_id: str, stored: Sequence[StoredChunk]) -> None:
        """As `rag.ports.ChunkStore.load`: one transaction an embedding space."""
        with self._tenant(tenant_id) as tenant:
            for seq in tenant.load(stored):
                tenant.leader.progress.want(seq)  # indexing goes on beside: what gathers now would be waited for at the end
                self._settle(tenant_id, tenant, seq, wait=False)

    def drop_tenant(self, tenant_id: str) -> None:
        """As `rag.ports.ChunkStore.drop_tenant`. Calls under way for the tenant are waited for."""
        check_tenant_id(tenant_id)
        with self._opening:
            self._retire_and_wait(tenant_id)
            folder = self._folder / tenant_id
            grave = self._folder / f".dropped-{uuid.uuid4().hex}"
            try:
                folder.rename(grave)
            except FileNotFoundError:
                return
            except OSError as exc:
                raise Unavailable(f"the tenant's folder cannot be removed: {reason(exc)}") from exc
            shutil.rmtree(grave, ignore_errors=True)

    def health(self) -> dict[str, str]:
        """As `rag.ports.ChunkStore.health`: yellow while derived data is rebuilt or a tenant's record cannot be used, red when nothing
        can be written or no tenant's record be used.
        """
        report = {"type": "embedded", "status": "green"}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f".probe-{uuid.uuid4().hex}"
            probe.write_bytes(b"millrace")
            probe.unlink()
        except OSError as exc:
            return report | {"status": "red", "error": f"the data directory cannot be written: {reason(exc)}"}
        try:
            unusable = self._record_check.failures()
        except OSError as exc:
            return report | {"status": "red", "error": f"the chunk records cannot be looked at: {reason(exc)}"}
        if unusable.reason:
            return report | {"status": "red" if unusable.all else "yellow", "error": unusable.reason}
        with self._state:
            leaders = [tenant.leader for tenant in self._open.values()]
        failures = [leader.failure for leader in leaders if leader.failure is not None]
        if failures:
            return report | {"status": "yellow", "error": failures[0]}
        if any(leader.text_damaged.is_set() or leader.damaged_parts for leader in leaders):
            return report | {"status": "yellow", "error": "derived data is being rebuilt"}
        return report

    def close(self) -> None:
        """As `rag.ports.ChunkStore.close`."""
        if self._closed:
            return
        self._closed = True
        self._work.set()
        self._indexer.join()
        with self._opening:
            for tenant in list(self._open.values()):
                tenant.leader.stop()
            for tenant_id in list(self._open):
                self._retire_and_wait(tenant_id)

    # ------------------------------------------------------------------------------------------------ tenants
    @contextmanager
    def _tenant(self, tenant_id: str) -> Iterator[Tenant]:
        """The open tenant, which stays open inside the context."""
        tenant = self._take(tenant_id)
        try:
            yield tenant
        finally:
            self._leave(tenant)

    def _take(self, tenant_id: str) -> Tenant:
        if self._closed:
            raise Unavailable("the chunk store is closed")
        tenant = self._take_open(tenant_id)
        if tenant is not None:
            return tenant
        check_tenant_id(tenant_id)
        with self._opening:
            tenant = self._take_open(tenant_id)
            if tenant is not None:
                return tenant
            try:
                tenant = Tenant(self._folder / tenant_id, self._analyser_version, self._analyse)
            except OSError as exc:
                raise Unavailable(f"the tenant's folder cannot be used: {reason(exc)}") from exc
            with self._state:
                self._open[tenant_id] = tenant
                self._users[tenant] = 1
            self._close_oldest()
        self._notify(tenant_id)
        return tenant

    def _is_absent(self, tenant_id: str, selector: ChunkSelector | None = None) -> bool:
        """Nothing was ever put for the tenant: it gets no folder by being asked for. False once the store is closed.

        Raises `InvalidArgument` for what a tenant that is there would refuse.
        """
        check_tenant_id(tenant_id)
        if selector is not None:
            where(selector)
        return not self._closed and tenant_id not in self._open and not (self._folder / tenant_id).exists()

    def _take_open(self, tenant_id: str) -> Tenant | None:
        with self._state:
            tenant = self._open.get(tenant_id)
            if tenant is None:
                return None
            if not tenant.moved:
                self._open.move_to_end(tenant_id)
                self._users[tenant] += 1
                return tenant
        self._give_up(tenant_id, tenant)
        return None

    def _give_up(self, tenant_id: str, tenant: Tenant) -> None:
        """Retire a tenant whose folder is not there any more."""
        with self._state:
            if self._open.get(tenant_id) is not tenant:
                return
            del self._open[tenant_id]
        self._retire(tenant)

    def _close_oldest(self) -> None:
        """Close tenants that nobody uses and that have nothing to index, those unused longest first, down to the limit."""
        with self._state:
            unused = [id_ for id_, tenant in self._open.items() if self._users[tenant] == 0]
            surplus = len(self._open) - self._max_open
        for id_ in unused:
            if surplus <= 0:
                return
            with self._state:
                tenant = self._open.get(id_)
                if tenant is None or self._users[tenant] or tenant.leader.pending():
                    continue
                del self._open[id_]
            self._retire(tenant)
            surplus -= 1

    def _retire(self, tenant: Tenant) -> None:
        """Close a tenant that was taken from `_open` as soon as nobody uses it. Who waits for its text index is let go."""
        tenant.leader.stop()
        with self._state:
            self._retired.add(tenant)
            self._users[tenant] += 1
        self._leave(tenant)

    def _leave(self, tenant: Tenant) -> None:
        with self._state:
            self._users[tenant] -= 1
            if tenant not in self._retired or self._users[tenant]:
                return
            self._retired.discard(tenant)
        tenant.close()
        with self._state:
            del self._users[tenant]
            self._state.notify_all()

    def _retire_and_wait(self, tenant_id: str) -> None:
        with self._state:
            tenant = self._open.pop(tenant_id, None)
        if tenant is not None:
            self._retire(tenant)
            with self._state:
                self._state.wait_for(lambda: tenant not in self._users, _CLOSE_SECONDS)

    # ------------------------------------------------------------------------------------------------ the indexer
    def _settle(self, tenant_id: str, tenant: Tenant, seq: int, *, wait: bool) -> None:
        if wait:
            tenant.leader.progress.want(seq)
        self._notify(tenant_id)
        if wait:
            tenant.leader.wait(seq, self._wait_seconds)

    def _notify(self, tenant_id: str) -> None:
        with self._state:
            self._busy.add(tenant_id)
        self._work.set()

    def _run_indexer(self) -> None:
        """Give each tenant with work a turn, until the store closes. Nothing that goes wrong with one stops the others."""
        while not self._closed:
            self._work.wait(_TURN_SECONDS if self._busy else None)
            self._work.clear()
            with self._state:
                turn = [(id_, self._open[id_]) for id_ in self._busy if id_ in self._open]
                self._busy.clear()
                for _, tenant in turn:
                    self._users[tenant] += 1
            for tenant_id, tenant in turn:
                self._give_turn(tenant_id, tenant)
            if len(self._open) > self._max_open:
                self._close_oldest()

    def _give_turn(self, tenant_id: str, tenant: Tenant) -> None:
        try:
            if tenant.moved:
                self._give_up(tenant_id, tenant)
                more = False
            else:
                tenant.look_again()
                more = tenant.leader.step()
        except Exception as exc:  # noqa: BLE001 - a boundary: the thread serves other tenants too
            _log.exception("store_upkeep_failed", tenant=tenant_id)
            tenant.leader.retreat(Unavailable(f"the upkeep of the chunk store failed: {type(exc).__name__}"))
            more = True
        finally:
            self._leave(tenant)
        if more:
            with self._state:
                self._busy.add(tenant_id)
