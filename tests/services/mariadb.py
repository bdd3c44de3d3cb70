"""A private MariaDB or MySQL server for tests: a throw-away instance on a free port of the loopback."""

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import pymysql

from tests.services.database_server import PASSWORD, USER, DatabaseServer, running

INSTALL = "mariadb-server (apt-get install mariadb-server)"
# what only MySQL knows: no second port, no folder for files, and its log of changes written as InnoDB's, below
MYSQL_OPTIONS = ["--mysqlx=OFF", "--secure-file-priv=NULL", "--sync-binlog=0"]


def program(name: str) -> str | None:
    """Where this program is: below the folder that was named (an unpacked MariaDB or MySQL), or on this machine."""
    folder = basedir()
    return shutil.which(name, path=folder and os.pathsep.join(str(Path(folder) / part) for part in ("bin", "sbin", "scripts")))


def basedir() -> str | None:
    """The folder that was named."""
    return os.environ.get("MILLRACE_TEST_MYSQL_BASEDIR")


class MariaServer(DatabaseServer):
    """A MariaDB or a MySQL."""

    kind = "mysql"
    system_database = "mysql"
    not_yet = pymysql.OperationalError

    def connect(self, database: str = "") -> "pymysql.Connection[pymysql.cursors.Cursor]":
        """A connection of a user who may do all, every statement by itself."""
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, database=database or self.system_database,
            autocommit=True, connect_timeout=5,
        )  # fmt: skip

    def execute(self, statement: str) -> None:
        """Run one statement as that user."""
        connection = self.connect()
        try:
            connection.cursor().execute(statement)
        finally:
            connection.close()

    def create_database(self, name: str) -> str:
        """The address of a new, empty database, whose default order of texts does not tell letters' cases apart."""
        self.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove the database."""
        self.execute(f"DROP DATABASE IF EXISTS `{name}`")

    def initialise(self) -> None:
        """Make the data directory and the user, who has the server's own way to prove who one is."""
        if program("mariadbd"):
            install = [program("mariadb-install-db") or "mariadb-install-db", "--no-defaults", *self._place]
            command = [*install, "--skip-test-db", "--auth-root-authentication-method=normal"]
        else:
            command = [*self._server, "--initialize-insecure"]
        self.run(*command)
        (self.folder / "user.sql").write_text(
            f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n"
        )
        self.start(f"--init-file={self.folder / 'user.sql'}")

    @property
    def _place(self) -> list[str]:
        """Where its files, its data and its temporary tables are; these of its own, for a server that starts removes all it finds."""
        own = [f"--datadir={self.folder / 'data'}", f"--tmpdir={self.folder}"]
        return [f"--basedir={folder}", *own] if (folder := basedir()) else own

    @property
    def _server(self) -> list[str]:
        """The program, and what it is told at every start."""
        if mariadbd := program("mariadbd"):
            return [mariadbd, "--no-defaults", *self._place]
        return [program("mysqld") or "mysqld", "--no-defaults", *self._place, *MYSQL_OPTIONS]

    def command(self) -> list[str]:
        return [
            *self._server, f"--port={self.port}", "--bind-address=127.0.0.1", f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            # written to the kernel at each commit: that survives the death of the process, which is all that is tested
            "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=64M", "--max-connections=60", "--skip-name-resolve",
        ]  # fmt: skip


def mariadb() -> AbstractContextManager[MariaServer]:
    """A running server; it and its data are gone afterwards."""
    return running(MariaServer, "mysql")


def installed() -> bool:
    """Whether this machine has the server's programs."""
    return program("mariadb-install-db" if program("mariadbd") else "mysqld") is not None
