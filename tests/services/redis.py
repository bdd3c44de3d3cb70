"""A private Redis for tests: a throw-away instance on a free port of the loopback, which can be killed, stopped and emptied."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.services.machine import free_port

INSTALL = "redis-server (apt-get install redis-server)"
PASSWORD = "p@ss:w/rd"
START_SECONDS = 30.0


def program() -> str | None:
    """Where `redis-server` is."""
    return shutil.which("redis-server")


class RedisServer:
    """One Redis on a port that stays the same over restarts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address, with the password."""
        return f"redis://:p%40ss%3Aw%2Frd@127.0.0.1:{self.port}/0"

    def start(self) -> "RedisServer":
        """Start it and wait until it answers."""
        options = {
            "port": self.port, "bind": "127.0.0.1", "requirepass": PASSWORD, "dir": self._folder, "save": "", "appendonly": "no",
            "maxmemory": "64mb", "maxmemory-policy": "allkeys-lru",
        }  # fmt: skip
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen([program() or "redis-server", *arguments], stdout=subprocess.DEVNULL, cwd=self._folder)
        deadline = time.monotonic() + START_SECONDS
        while self.command("PING") != b"+PONG":
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError("redis-server did not start")
            time.sleep(0.02)
        return self

    def command(self, *words: str) -> bytes:
        """The first line of the answer to a command; nothing where Redis does not answer."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            for command in (("AUTH", PASSWORD), words):
                pieces = [f"*{len(command)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in command)]
                connection.sendall("".join(pieces).encode())
                answer = connection.recv(1 << 16).split(b"\r\n")[0]
            return answer
        return b""

    def flush(self) -> None:
        """Empty it."""
        assert self.command("FLUSHALL") == b"+OK"

    def hang(self) -> None:
        """Stop it in its tracks: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A running Redis, gone with all it holds when the block is left."""
    with tempfile.TemporaryDirectory(prefix="millrace-redis-") as folder:
        server = RedisServer(Path(folder))
        try:
            yield server.start()
        finally:
            server.kill()
