"""A private PostgreSQL server for tests: a throw-away instance on a free port of the loopback."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

USER, PASSWORD = "millrace", "p@ss:w/rd"
QUOTED_PASSWORD = "p%40ss%3Aw%2Frd"
INSTALL = "postgresql (apt-get install postgresql)"
START_SECONDS = 60.0


def program(name: str) -> str | None:
    """Where a program of PostgreSQL is: in the folder that was named, or where Debian keeps it, which is out of the path."""
    if named := os.environ.get("MILLRACE_TEST_POSTGRES_BIN"):
        return shutil.which(name, path=named)
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((str(folder / name) for folder in folders if (folder / name).exists()), shutil.which(name))


class PostgresServer:
    """A server that can be killed, stopped in its tracks and started again on the same port and data."""

    kind = "postgresql"

    def __init__(self, folder: Path, owner: str | None) -> None:
        self.folder, self.owner, self.port = folder, owner, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", user: str = USER, password: str | None = QUOTED_PASSWORD) -> str:
        """The address of a database of this server."""
        secret = "" if password is None else f":{password}"
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
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
        self._run(
            "initdb", "--no-sync", "--pgdata", str(self.folder / "data"), "--username", USER, "--pwfile", str(secret),
            "--auth", "scram-sha-256", "--encoding", "UTF8", *order,
        )  # fmt: skip

    def start(self) -> "PostgresServer":
        """Start it and wait until it answers."""
        options = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "shared_buffers": "64MB",
            # what the kernel has survives the death of the process, which is all that is tested
            "fsync": "off", "logging_collector": "off", "max_connections": 60,
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program("postgres") or "postgres", "-D", str(self.folder / "data"), *arguments],
                stdout=subprocess.DEVNULL, stderr=log, user=self.owner, group=self.owner,
                extra_groups=[] if self.owner else None, cwd=self.folder,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
                return self
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """`kill -9` of the server and all its children, which do not outlive it by long."""
        if self.process is not None:
            for pid in [*children(self.process.pid), self.process.pid]:
                _signal(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """Stop every process in its tracks: connections stay, nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._signal_all(signal.SIGCONT)

    def stop(self) -> None:
        """End it for good."""
        if self.process is not None:
            self.resume()
            self.kill()

    def _signal_all(self, number: signal.Signals) -> None:
        assert self.process is not None
        for pid in [self.process.pid, *children(self.process.pid)]:
            _signal(pid, number)

    def _major(self) -> int:
        """The server's version, as 15."""
        return int(self._run("postgres", "--version").split()[2].partition(".")[0])

    def _run(self, name: str, *arguments: str) -> str:
        return subprocess.run(
            [program(name) or name, *arguments], check=True, capture_output=True, text=True, user=self.owner, group=self.owner,
            extra_groups=[] if self.owner else None, cwd=self.folder,
        ).stdout  # fmt: skip


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A running server; it and its data are gone afterwards."""
    owner = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="millrace-postgres-"))
    server = PostgresServer(folder, owner)
    try:
        if owner:
            shutil.chown(folder, owner, owner)
        server.initialise()
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def installed() -> bool:
    """Whether this machine has the server's programs."""
    return program("initdb") is not None and program("postgres") is not None


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def children(pid: int) -> list[int]:
    """The processes that this one started, by whichever of its threads, and that run."""
    found: list[int] = []
    for thread in Path("/proc").glob(f"{pid}/task/*/children"):
        with suppress(OSError):
            found += map(int, thread.read_text().split())
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
