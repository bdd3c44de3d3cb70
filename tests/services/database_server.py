"""What the private database servers of tests share: a folder and a port of their own, and an owner who is not root."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from tests.services.machine import children, free_port

USER, PASSWORD = "millrace", "p@ss:w/rd"
QUOTED_PASSWORD = "p%40ss%3Aw%2Frd"
START_SECONDS = 60.0


class DatabaseServer:
    """A server that can be killed, stopped in its tracks and started again on the same port and data.

    A kind of server says what its command is, how one connects, and which error says that it does not answer.
    """

    kind: ClassVar[str]  # the scheme of its addresses
    system_database: ClassVar[str]
    not_yet: ClassVar[type[Exception]]

    def __init__(self, folder: Path, owner: str | None) -> None:
        """`owner` is the user as whom it runs; None for the one who asks."""
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = owner
        self._as_owner: dict[str, Any] = {"cwd": folder, "user": owner, "group": owner, "extra_groups": [] if owner else None}

    # ------------------------------------------------------------------------------------------------ what a kind of server says
    def connect(self, database: str = "") -> Any:
        """A connection of a user who may do all, every statement by itself; `database` "" is the server's own."""
        raise NotImplementedError

    def initialise(self) -> None:
        """Make the data directory and the user."""
        raise NotImplementedError

    def command(self) -> Sequence[str]:
        """What starts it."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ what they share
    def url(self, database: str = "", user: str = USER, password: str | None = QUOTED_PASSWORD) -> str:
        """The address of a database of this server."""
        secret = "" if password is None else f":{password}"
        return f"{self.kind}://{user}{secret}@127.0.0.1:{self.port}/{database or self.system_database}"

    def start(self, *options: str) -> Self:
        """Start it and wait until it answers; nothing happens where it runs."""
        if self.process is not None:
            return self
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*self.command(), *options], stdout=subprocess.DEVNULL, stderr=log, **self._as_owner)
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
                return self
            except self.not_yet:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """`kill -9` of the server and all its children, which do not outlive it by long."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """Stop every process in its tracks: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it for good."""
        if self.process is not None:
            self.resume()
            self.kill()

    def run(self, *command: str) -> str:
        """What a program prints that is run as the server's owner."""
        return subprocess.run(command, check=True, capture_output=True, text=True, **self._as_owner).stdout

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        for pid in [self.process.pid, *children(self.process.pid)]:  # itself first: it would start others in their place
            with suppress(ProcessLookupError):
                os.kill(pid, number)


S = TypeVar("S", bound=DatabaseServer)


@contextmanager
def running(kind: type[S], owner: str) -> Iterator[S]:
    """A running server; it and its data are gone afterwards. Where we are root, as whom it refuses to run, `owner` runs it."""
    user = owner if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix=f"millrace-{kind.kind}-"))
    server = kind(folder, user)
    try:
        if user:
            shutil.chown(folder, user, user)
        server.initialise()
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
