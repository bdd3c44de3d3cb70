"""Every database call: one thread of the database lane, one connection, one transaction."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from peewee import DatabaseError, DataError, IntegrityError, InterfaceError, ProgrammingError

from db.address import Address, Kind
from db.engines import open_engine
from db.faults import Fault, fault_of
from db.migrate import migrate
from db.models import proxy
from rag.errors import DatabaseUnavailable, InvalidArgument, OutcomeUnknown
from rag.stages import stage
from rag.threads import Lane

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_SECONDS = 10.0
TRIES = 6  # of a transaction that met a deadlock or a conflict, or whose connection was lost
PAUSE_SECONDS = 0.02  # before the second try, at random; twice as long before each further one
REST_SECONDS = 0.5  # after a connection could not be made: meanwhile nobody waits for another attempt
PERMISSION = "42501"  # of PostgreSQL: no error of a service, though it comes as one


class Session:
    """Runs service functions. `read` and `write` are for the event loop, `read_now` and `write_now` for code on a thread.

    A service function is plain and blocking; it runs inside one transaction that commits when it returns and rolls back when
    it raises. It must not keep peewee rows alive: it returns frozen dataclasses. It may run several times: a transaction that was
    certainly not made, because of a deadlock, a conflict with another one or a lost connection, is begun again. Errors:
    `DatabaseUnavailable` when the database does not answer, `OutcomeUnknown` when it fell silent while it was committing,
    `Overloaded` when too many calls wait, and whatever the service raises.
    """

    def __init__(
        self, where: Path | Address, lane: Lane, *, timeout_seconds: float = TIMEOUT_SECONDS, guard: Callable[[], None] | None = None
    ) -> None:  # fmt: skip
        """A path is that of a SQLite file, which is made. One `Session` a process.

        `timeout_seconds` bounds each statement sent to a server. A `guard` begins every transaction that writes: it raises where
        nothing may be written now.
        """
        self._lane, self._guard = lane, guard
        self.address = Address("sqlite", path=where) if isinstance(where, Path) else where
        self._database = open_engine(self.address, timeout_seconds)
        self._connecting = threading.Lock()
        self._rests_until = self._reached_at = 0.0
        self._last_fault = ""
        proxy.initialize(self._database)

    @property
    def kind(self) -> Kind:
        """Which database it is."""
        return self.address.kind

    async def read(self, service: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`service(*args, **kwargs)` in a transaction that sees one moment of the database and does not write."""
        with stage("db"):
            return await self._lane.run(self.read_now, service, *args, **kwargs)

    async def write(self, service: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`service(*args, **kwargs)` in a transaction that may write; it is durable when this returns.

        Once the call runs it is finished even if the caller goes away, so that a cancelled request never leaves half a change.
        """
        with stage("db"):
            return await asyncio.shield(self._lane.run(self.write_now, service, *args, **kwargs))

    async def write_once(self, service: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`write` for a service that also changes something beside the database: it is never run a second time."""
        with stage("db"):
            return await asyncio.shield(self._lane.run(self._once, service, *args, **kwargs))

    def read_now(self, service: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`read` for code that is on a thread already."""
        return self._transact("read", TRIES, service, *args, **kwargs)

    def write_now(self, service: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`write` for code that is on a thread already."""
        return self._transact("write", TRIES, service, *args, **kwargs)

    def create_tables(self) -> None:
        """Bring the schema to the current version; safe when several servers start at once. Raises `SettingsError` for a newer one."""
        try:
            self.write_now(migrate, self._database)
        finally:
            if self.kind != "sqlite":  # with the connection goes the lock, and the patience that it was given
                self._drop()

    def take_over(self) -> None:
        """Make this the session whose database the services talk to; for a program that has two, and uses them in turns."""
        proxy.initialize(self._database)

    def close(self) -> None:
        """Close the connections to a server: of all threads, so call it when the lane is idle. Of a file: the calling thread's."""
        self._database.close_all()

    def _once(self, service: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._transact("write", 1, service, *args, **kwargs)

    def _transact(self, mode: str, tries: int, service: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        database, tried, reached = self._database, 0, "connection"
        while True:
            tried += 1
            try:
                fresh = self._connect()
                reached = "transaction"
                with database.atomic(mode):
                    reached = "service"
                    if self._guard is not None and mode == "write" and service is not migrate:  # which makes what the guard reads
                        self._guard()
                    result = service(*args, **kwargs)
                    reached = "commit"
                return result
            except (DatabaseError, InterfaceError) as error:
                fault = self._judge(error, reached)
                stale = reached == "transaction" and not fresh and self.kind != "sqlite"
                # nothing of a service has run on a connection that was lost while it rested
                unknown = reached == "commit" and not fault.undone
                again = reached != "connection" and (stale or (fault.again and tried < tries and not unknown))
                if unknown and database.kind != "sqlite":
                    raise OutcomeUnknown(f"the database fell silent while committing: {fault.reason}") from error
                if not again:
                    raise DatabaseUnavailable(f"the database cannot answer: {fault.reason}") from error
            if not stale:
                time.sleep(random.uniform(0, PAUSE_SECONDS * 2**tried))

    def _judge(self, error: DatabaseError | InterfaceError, reached: str) -> Fault:
        """What the error means; the connection is closed where it is of no use any more. Raises what is the service's own matter."""
        refused = getattr(getattr(error, "orig", None), "sqlstate", None) == PERMISSION
        if isinstance(error, (IntegrityError, DataError, ProgrammingError)) and reached == "service" and not refused:
            if isinstance(error, DataError):
                raise InvalidArgument("a value is too long or too large to be kept") from error
            raise error  # the database itself is well
        fault = fault_of(self.kind, error)
        if fault.lost or reached != "service":
            self._drop()
        return fault

    def _connect(self) -> bool:
        """Whether a new connection was made for this thread, because it had none.

        While the database cannot be reached one thread at a time tries, and all others fail at once: nobody waits in a row behind them.
        """
        database = self._database
        if not database.is_closed():
            return False
        if self._rests_until == 0.0:
            return self._open()
        if time.monotonic() < self._rests_until or not self._connecting.acquire(blocking=False):
            raise DatabaseUnavailable(f"the database cannot answer: {self._last_fault}")
        try:
            return self._open()
        finally:
            self._connecting.release()

    def _open(self) -> bool:
        began = time.monotonic()
        try:
            self._database.connect()
        except (DatabaseError, InterfaceError) as error:
            self._last_fault = fault_of(self.kind, error).reason
            if self.kind != "sqlite" and began > self._reached_at:  # nobody has reached it meanwhile
                self._rests_until = time.monotonic() + REST_SECONDS
            raise
        self._reached_at, self._rests_until = time.monotonic(), 0.0
        return True

    def _drop(self) -> None:
        if not self._database.is_closed():
            self._database.close()
