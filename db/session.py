"""Every database call: one thread of the database lane, one connection, one transaction."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from peewee import DatabaseError, DataError, IntegrityError, InterfaceError, ProgrammingError, SqliteDatabase

from db.migrate import migrate
from db.models import proxy
from rag.errors import DatabaseUnavailable
from rag.stages import stage
from rag.threads import Lane

P = ParamSpec("P")
T = TypeVar("T")

PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": "full",  # an acknowledged write survives a power cut, too
    "busy_timeout": 30_000,
    "cache_size": -8_000,
    "foreign_keys": 0,
}


class Session:
    """Runs service functions. `read` and `write` are for the event loop, `read_now` and `write_now` for code on a thread.

    A service function is plain and blocking; it runs inside one transaction that commits when it returns and rolls back when
    it raises. It must not keep peewee rows alive: it returns frozen dataclasses. Errors: `DatabaseUnavailable` when the database does
    not answer, `Overloaded` when too many calls wait, and whatever the service raises.
    """

    def __init__(self, path: Path, lane: Lane) -> None:
        """Open (and create) the SQLite file at `path`. One `Session` a process."""
        self._lane = lane
        self._database = SqliteDatabase(str(path), pragmas=PRAGMAS, autoconnect=False, check_same_thread=False)
        proxy.initialize(self._database)

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

    def read_now(self, service: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`read` for code that is on a thread already."""
        return self._transact("DEFERRED", service, *args, **kwargs)

    def write_now(self, service: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`write` for code that is on a thread already."""
        # IMMEDIATE: a read transaction upgraded to a writing one fails at once when another process wrote meanwhile
        return self._transact("IMMEDIATE", service, *args, **kwargs)

    def create_tables(self) -> None:
        """Bring the schema to the current version; safe when two servers start at once."""
        self.write_now(migrate, self._database)

    def close(self) -> None:
        """Close the calling thread's connection; those of the lane's threads go with their threads."""
        if not self._database.is_closed():
            self._database.close()

    def _transact(self, mode: str, service: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        database = self._database
        try:
            database.connect(reuse_if_open=True)
            with database.atomic(mode):
                return service(*args, **kwargs)
        except (IntegrityError, DataError, ProgrammingError):
            raise  # a service's own matter; the database itself is well
        except (DatabaseError, InterfaceError) as error:
            database.close()
            raise DatabaseUnavailable(f"the database cannot answer: {type(error).__name__}") from error
