"""A private MariaDB or MySQL server for tests: a throw-away instance on a free port of the loopback."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql

from tests.services.postgres import QUOTED_PASSWORD, free_port

USER, PASSWORD = "millrace", "p@ss:w/rd"
INSTALL = "mariadb-server (apt-get install mariadb-server)"
# what only MySQL knows: no second port, no folder for files, and its log of changes written as InnoDB's, below
MYSQL_OPTIONS = ["--mysqlx=OFF", "--secure-file-priv=NULL", "--sync-binlog=0"]
START_SECONDS = 60.0


def program(name: str) -> str | None:
    """Where this program is: below the folder that was named (an unpacked MariaDB or MySQL), or on this machine."""
    folder = basedir()
    return shutil.which(name, path=folder and os.pathsep.join(str(Path(folder) / part) for part in ("bin", "sbin", "scripts")))


def basedir() -> str | None:
    """The folder that was named."""
    return os.environ.get("MILLRACE_TEST_MYSQL_BASEDIR")


class MariaServer:
    """A server that can be killed, stopped in its tracks and started again on the same port and data."""

    kind = "mysql"

    def __init__(self, folder: Path, owner: str | None) -> None:
        self.folder, self.owner, self.port = folder, owner, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "mysql", user: str = USER, password: str | None = QUOTED_PASSWORD) -> str:
        """The address of a database of this server."""
        secret = "" if password is None else f":{password}"
        return f"mysql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "mysql") -> "pymysql.Connection[pymysql.cursors.Cursor]":
        """A connection of a user who may do all, every statement by itself."""
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, database=database, autocommit=True, connect_timeout=5
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
        subprocess.run(
            command, check=True, capture_output=True, user=self.owner, group=self.owner,
            extra_groups=[] if self.owner else None, cwd=self.folder,
        )  # fmt: skip
        (self.folder / "user.sql").write_text(
            f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n"
        )
        self.start(f"--init-file={self.folder / 'user.sql'}")

    @property
    def _place(self) -> list[str]:
        """Where the program's files and the data are."""
        data = f"--datadir={self.folder / 'data'}"
        return [f"--basedir={folder}", data] if (folder := basedir()) else [data]

    @property
    def _server(self) -> list[str]:
        """The program, and what it is told at every start."""
        if mariadbd := program("mariadbd"):
            return [mariadbd, "--no-defaults", *self._place]
        return [program("mysqld") or "mysqld", "--no-defaults", *self._place, *MYSQL_OPTIONS]

    def start(self, *options: str) -> "MariaServer":
        """Start it and wait until it answers."""
        if self.process is not None:
            return self
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._server, f"--port={self.port}",
                 "--bind-address=127.0.0.1", f"--socket={self.folder / 'socket'}", f"--pid-file={self.folder / 'pid'}",
                 # written to the kernel at each commit: that survives the death of the process, which is all that is tested
                 "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=64M", "--max-connections=60",
                 "--skip-name-resolve", *options],
                stdout=subprocess.DEVNULL, stderr=log, user=self.owner, group=self.owner,
                extra_groups=[] if self.owner else None, cwd=self.folder,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
                return self
            except pymysql.OperationalError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """`kill -9`."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """Stop it in its tracks: connections stay, nothing answers."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it for good."""
        if self.process is not None:
            self.resume()
            self.kill()


@contextmanager
def mariadb() -> Iterator[MariaServer]:
    """A running server; it and its data are gone afterwards."""
    owner = "mysql" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="millrace-mariadb-"))
    server = MariaServer(folder, owner)
    try:
        if owner:
            shutil.chown(folder, owner, owner)
        server.initialise()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def installed() -> bool:
    """Whether this machine has the server's programs."""
    return program("mariadb-install-db" if program("mariadbd") else "mysqld") is not None
