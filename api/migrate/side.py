"""One of the two installations that a move knows: its settings, places and parts, opened when they are asked for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import ParamSpec, TypeVar

from api.keys import prepare_data_dir
from api.migrate.patience import patiently
from api.parts import open_blobs, open_store
from api.places import kinds_of, places_of
from db.address import address_of
from db.services import blob_service, move_service
from db.services.move_service import MoveState
from db.session import Session
from db.transfer import Tables
from rag.errors import MillraceError, SettingsError, Unavailable
from rag.ports import BlobStore, ChunkStore
from rag.settings import Settings
from rag.threads import Lane

P = ParamSpec("P")
T = TypeVar("T")

ROWS_AT_ONCE = 1_000


class Side:
    """The parts of one installation. Nothing of it is ingested, and no server is needed; only its database is guarded by nobody."""

    def __init__(self, settings: Settings, name: str, stack: ExitStack) -> None:
        """`name` is how messages call it. What is opened is closed with the stack."""
        self.settings, self.name = settings, name
        self.places, self.kinds = places_of(settings), kinds_of(settings)
        self.data_dir = prepare_data_dir(settings.data_dir)
        self._stack = stack
        self._address = address_of(settings.database_url, self.data_dir, settings.database_password)

    @cached_property
    def store(self) -> ChunkStore:
        """Its chunks."""
        store = open_store(self.settings, self.data_dir)
        self._stack.callback(store.close)
        return store

    @cached_property
    def blobs(self) -> BlobStore:
        """Its files."""
        blobs = open_blobs(self.settings, self.data_dir)
        self._stack.callback(blobs.close)
        return blobs

    @cached_property
    def tables(self) -> Tables:
        """Its tables as they are."""
        tables = Tables(self._address, self.settings.database_timeout_seconds)
        self._stack.callback(tables.close)
        return tables

    @cached_property
    def _session(self) -> Session:
        lane = Lane("db", threads=1, queue_limit=1)
        session = Session(self._address, lane, timeout_seconds=self.settings.database_timeout_seconds)
        self._stack.callback(lane.close)
        self._stack.callback(session.close)
        return session

    def look_at_database(self) -> str:
        """Whose tables its database has: "ours", "foreign" or "none"."""
        with self._named("database"):
            return self.tables.whose()

    def prepare_database(self) -> None:
        """Bring its schema to the present version."""
        with self._named("database"):
            self._session.take_over()
            patiently(self._session.create_tables, seconds=10.0)

    def read(self, service: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`service(...)` in its database."""
        self._session.take_over()
        return patiently(lambda: self._session.read_now(service, *args, **kwargs))

    def write(self, service: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, and durably. It may be done twice."""
        self._session.take_over()
        return patiently(lambda: self._session.write_now(service, *args, **kwargs))

    @property
    def state(self) -> MoveState:
        """What its database says of moves."""
        return self.read(move_service.state)

    def tenants(self, after: str = "") -> Iterator[str]:
        """The ids of its tenants, rising."""
        while ids := self.read(move_service.tenants_after, after, ROWS_AT_ONCE):
            yield from ids
            after = ids[-1]

    def documents(self, after: str = "") -> Iterator[tuple[str, str]]:
        """(id, key of its file) of its documents, by rising id."""
        while rows := self.read(blob_service.page, after, ROWS_AT_ONCE):
            yield from rows
            after = rows[-1][0]

    def check_health(self, parts: tuple[str, ...]) -> None:
        """Raises `Unavailable` where one of the parts cannot be used."""
        for part, health in (("chunks", lambda: self.store.health()), ("files", lambda: self.blobs.health())):
            if part in parts:
                with self._named(part):
                    found = health()
                    if found["status"] == "red":
                        raise Unavailable(found.get("error") or "it does not answer")

    @contextmanager
    def _named(self, part: str) -> Iterator[None]:
        """Errors say whose part it is."""
        try:
            yield
        except SettingsError as error:
            raise SettingsError(f"{self.name}, {part} ({self.kinds[part]}): {error}") from error
        except MillraceError as error:
            raise Unavailable(f"{self.name}, {part} ({self.kinds[part]}): {error}") from error
