"""A private PostgreSQL server for tests: a throw-away instance on a free port of the loopback."""

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import psycopg

from tests.services.database_server import PASSWORD, USER, DatabaseServer, running

INSTALL = "postgresql (apt-get install postgresql)"


def program(name: str) -> str | None:
    """Where a program of PostgreSQL is: in the folder that was named, or where Debian keeps it, which is out of the path."""
    if named := os.environ.get("MILLRACE_TEST_POSTGRES_BIN"):
        return shutil.which(name, path=named)
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((str(folder / name) for folder in folders if (folder / name).exists()), shutil.which(name))


class PostgresServer(DatabaseServer):
    """A PostgreSQL."""

    kind = "postgresql"
    system_database = "postgres"
    not_yet = psycopg.OperationalError

    def connect(self, database: str = "") -> psycopg.Connection:
        """A connection of a superuser, every statement by itself."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=5)

    def create_database(self, name: str) -> str:
        """The address of a new, empty database."""
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove the database, whoever is connected to it."""
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def initialise(self) -> None:
        """Make the data directory. The order of texts is not that of their bytes, as it is not on its users' servers."""
        order = ["--locale", "C.UTF-8", "--locale-provider", "icu", "--icu-locale", "en-US"]
        if self._major() < 15:  # before it a whole server could not have an order of ICU's
            order = ["--locale", "en_US.UTF-8"]
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if self.owner:
            shutil.chown(secret, self.owner)
        self.run(
            program("initdb") or "initdb", "--no-sync", "--pgdata", str(self.folder / "data"), "--username", USER, "--pwfile", str(secret),
            "--auth", "scram-sha-256", "--encoding", "UTF8", *order,
        )  # fmt: skip

    def command(self) -> list[str]:
        options = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "shared_buffers": "64MB",
            # what the kernel has survives the death of the process, which is all that is tested
            "fsync": "off", "logging_collector": "off", "max_connections": 60,
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [program("postgres") or "postgres", "-D", str(self.folder / "data"), *arguments]

    def _major(self) -> int:
        """The server's version, as 15."""
        return int(self.run(program("postgres") or "postgres", "--version").split()[2].partition(".")[0])


def postgres() -> AbstractContextManager[PostgresServer]:
    """A running server; it and its data are gone afterwards."""
    return running(PostgresServer, "postgres")


def installed() -> bool:
    """Whether this machine has the server's programs."""
    return program("initdb") is not None and program("postgres") is not None
