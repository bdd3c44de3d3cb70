"""The three databases as peewee knows them: how each connects, begins a transaction, and limits how long anything may take.

`kind` is "sqlite", "postgresql" or "mysql" (MariaDB, too). A "read" transaction sees one moment of the database and does not
write. A "write" transaction of SQLite is alone; one of a server sees what others commit while it runs, and a service that
writes what it read locks the rows first (`db.dialect.locked`).
"""

import random
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any, ClassVar

import psycopg
import pymysql
from peewee import InternalError, MySQLDatabase, OperationalError, PostgresqlDatabase, SqliteDatabase, __exception_wrapper__
from psycopg.pq import TransactionStatus
from pymysql.constants import CLIENT

from db.address import Address, Kind

PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": "full",  # an acknowledged write survives a power cut, too
    "busy_timeout": 30_000,
    "cache_size": -8_000,
    "foreign_keys": 0,
}
CONNECT_SECONDS = 5  # libpq takes no less than 2
BUSY_PAUSE_SECONDS = 0.02  # at most, at random
MIGRATION_LOCK = 0x6D696C6C72616365  # "millrace"
MIGRATION_SECONDS = 600
MYSQL_MODE = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_ZERO_DATE,NO_ZERO_IN_DATE"


class Sqlite(SqliteDatabase):
    """A file on this machine."""

    kind: ClassVar[Kind] = "sqlite"

    def __init__(self, address: Address) -> None:
        super().__init__(str(address.path), pragmas=PRAGMAS, autoconnect=False, check_same_thread=False)

    def connect(self, reuse_if_open: bool = False) -> bool:
        """Connect the calling thread. Of several processes that begin a new file at once SQLite fails all but one, without waiting."""
        until = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                return super().connect(reuse_if_open)
            except OperationalError as error:
                busy = getattr(getattr(error, "orig", error), "sqlite_errorname", "") == "SQLITE_BUSY"
                if not busy or time.monotonic() > until:
                    raise
                time.sleep(random.uniform(0, BUSY_PAUSE_SECONDS))

    def begin(self, mode: str = "read") -> None:
        # IMMEDIATE: a read transaction upgraded to a writing one fails at once when another process wrote meanwhile
        super().begin("IMMEDIATE" if mode == "write" else "DEFERRED")

    def lock_schema(self) -> None:
        """A write transaction holds the lock already."""

    def close_all(self) -> None:
        """Close the calling thread's connection; those of other threads go with their threads."""
        if not self.is_closed():
            self.close()


class _Server:
    """What the engines of servers share: all of a process's connections, so that they can be closed at its end."""

    def __init__(self) -> None:
        self._connections: set[Any] = set()
        self._counting = threading.Lock()

    def connect(self, reuse_if_open: bool = False) -> bool:
        """Connect the calling thread. peewee does it under a lock: threads would wait in a row for a server that hangs."""
        if not self._state.closed:  # type: ignore[attr-defined]
            return super().connect(reuse_if_open)  # type: ignore[misc]
        with __exception_wrapper__:
            connection = self._connect()  # type: ignore[attr-defined]
            with self._counting:
                self._connections.add(connection)
            try:
                self._limit(connection)
            except BaseException:
                self._close(connection)
                raise
            if self.server_version is None:  # type: ignore[has-type]
                self._set_server_version(connection)  # type: ignore[attr-defined]
        self._state.set_connection(connection)  # type: ignore[attr-defined]
        return True

    def _limit(self, connection: Any) -> None:
        """Tell the server how long it may take: its limits end what the client gave up, and free the locks that it held."""
        raise NotImplementedError

    def _close(self, connection: Any) -> None:
        with self._counting:
            self._connections.discard(connection)
        with suppress(psycopg.Error, pymysql.err.Error, OSError):  # it may be lost already
            connection.close()

    def close_all(self) -> None:
        """Close every thread's connection; a thread that goes on opens itself a new one."""
        if not self.is_closed():  # type: ignore[attr-defined]
            self.close()  # type: ignore[attr-defined]
        for connection in list(self._connections):
            self._close(connection)


class _PostgresConnection(psycopg.Connection[Any]):
    """A connection that does not wait for ever: neither for a server that hangs nor for a network that is cut."""

    patience_seconds = 10.0

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        return super().wait(self._bounded(gen), *args, **kwargs)

    def _bounded(self, gen: Any) -> Generator[Any, Any, Any]:
        end = time.monotonic() + self.patience_seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > end:
                    self.pgconn.finish()
                    raise psycopg.OperationalError("no answer in time")
                wanted = gen.send(ready)
        except StopIteration as end_of_it:
            return end_of_it.value


class Postgres(_Server, PostgresqlDatabase):
    """PostgreSQL 13 or newer, by psycopg 3."""

    kind: ClassVar[Kind] = "postgresql"

    def __init__(self, address: Address, timeout_seconds: float) -> None:
        _Server.__init__(self)
        self._address, self._timeout_seconds = address, timeout_seconds
        PostgresqlDatabase.__init__(self, address.name, autoconnect=False, prefer_psycopg3=True)

    def _connect(self) -> Any:
        address, timeout_ms = self._address, int(self._timeout_seconds * 1000)
        return _PostgresConnection.connect(
            host=address.host, port=address.port, user=address.user, password=address.password or None, dbname=address.name,
            connect_timeout=CONNECT_SECONDS, tcp_user_timeout=timeout_ms, keepalives_idle=30, client_encoding="utf8",
            application_name="millrace", autocommit=True, **dict(address.options),
        )  # fmt: skip

    def _limit(self, connection: Any) -> None:
        timeout_ms = int(self._timeout_seconds * 1000)
        connection.patience_seconds = self._timeout_seconds + 1
        connection.execute(
            f"SET statement_timeout = {timeout_ms}; SET lock_timeout = {timeout_ms // 2};"
            f"SET idle_in_transaction_session_timeout = {timeout_ms * 6};"
            "SET plan_cache_mode = force_custom_plan"  # a plan for any tenant is a bad one for most
        )

    def begin(self, mode: str = "read") -> None:
        level = "READ COMMITTED READ WRITE" if mode == "write" else "REPEATABLE READ READ ONLY"
        self.execute_sql(f"BEGIN ISOLATION LEVEL {level}")

    def commit(self) -> None:
        # the server answers the COMMIT of a transaction that met an error with a rollback, and calls that a success
        if self.connection().pgconn.transaction_status == TransactionStatus.INERROR:
            raise InternalError("a statement of the transaction failed and was passed over")
        super().commit()

    def lock_schema(self) -> None:
        """Wait for other servers that bring the schema up to date; held until the transaction ends."""
        self.execute_sql(f"SET LOCAL statement_timeout = {MIGRATION_SECONDS * 1000}")
        self.execute_sql(f"SET LOCAL lock_timeout = {MIGRATION_SECONDS * 1000}")
        self.connection().patience_seconds = MIGRATION_SECONDS + 1
        self.execute_sql("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))


class MySQL(_Server, MySQLDatabase):
    """MySQL 8.0.17 or MariaDB 10.11, or newer, by PyMySQL."""

    kind: ClassVar[Kind] = "mysql"

    def __init__(self, address: Address, timeout_seconds: float) -> None:
        _Server.__init__(self)
        self._address, self._timeout_seconds = address, timeout_seconds
        self._mariadb = False
        MySQLDatabase.__init__(self, address.name, autoconnect=False)

    def _connect(self) -> Any:
        address, seconds = self._address, self._timeout_seconds
        options = dict(address.options)
        return pymysql.connect(
            host=address.host, port=address.port, user=address.user, password=address.password, database=address.name,
            charset="utf8mb4", autocommit=True, connect_timeout=CONNECT_SECONDS, read_timeout=CONNECT_SECONDS, write_timeout=seconds + 1,
            client_flag=CLIENT.FOUND_ROWS,  # an UPDATE counts the rows it found, as the others do, not those it made different
            ssl_ca=options.get("ssl_ca"), ssl_cert=options.get("ssl_cert"), ssl_key=options.get("ssl_key"),
            ssl_verify_cert="ssl_ca" in options, ssl_verify_identity="ssl_ca" in options,
        )  # fmt: skip

    def _limit(self, connection: Any) -> None:
        seconds = self._timeout_seconds
        connection._read_timeout = seconds + 1  # PyMySQL has no other way to change it
        self._mariadb = "mariadb" in connection.get_server_info().lower()
        limit = f"max_statement_time = {seconds}" if self._mariadb else f"max_execution_time = {int(seconds * 1000)}"
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute(f"SET SESSION sql_mode = '{MYSQL_MODE}', innodb_lock_wait_timeout = {max(1, int(seconds / 2))}, {limit}")

    @property
    def collation(self) -> str:
        """The order of texts by their code points, in which blanks at the end count, too."""
        return "utf8mb4_nopad_bin" if self._mariadb else "utf8mb4_0900_bin"

    def begin(self, mode: str = "read") -> None:
        if mode == "write":
            self.execute_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            self.execute_sql("START TRANSACTION READ WRITE")
        else:
            self.execute_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")

    def lock_schema(self) -> None:
        """Wait for other servers that bring the schema up to date; held until the connection is closed."""
        self.connection()._read_timeout = MIGRATION_SECONDS + 1
        if self._mariadb:
            self.execute_sql("SET SESSION max_statement_time = 0")
        name = f"millrace {self.database}"[:64]
        (locked,) = self.execute_sql("SELECT GET_LOCK(%s, %s)", (name, MIGRATION_SECONDS)).fetchone()
        if locked != 1:
            raise InternalError("another server has been changing the schema for too long")


Engine = Sqlite | Postgres | MySQL


def open_engine(address: Address, timeout_seconds: float) -> Engine:
    """The engine of that address; it connects when it is asked to."""
    if address.kind == "sqlite":
        return Sqlite(address)
    return Postgres(address, timeout_seconds) if address.kind == "postgresql" else MySQL(address, timeout_seconds)
