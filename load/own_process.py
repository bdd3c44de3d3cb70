"""What callers and readers share: the process of their own in which they run, and their plain connections."""

import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from load.processes import allow_many_files

ROOT = Path(__file__).parents[1]


def in_own_process(module: str, *arguments: Any, words: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """The fields of what that module's program makes of the arguments; `words` are its command line.

    A program of its own: multiprocessing would load the caller's main module first, and with it often the whole server.
    """
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, input=pickle.dumps(arguments), stdout=subprocess.PIPE, cwd=ROOT, check=True)
    return pickle.loads(done.stdout)


def answer_parent(act: Callable[..., Any]) -> None:
    """The other end of `in_own_process`: `act` gets the arguments and returns a dataclass."""
    allow_many_files()
    sys.stdout.buffer.write(pickle.dumps(astuple(act(*pickle.load(sys.stdin.buffer)))))


def connect(url: str) -> socket.socket:
    """A connection to the server at that URL."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def received(connection: socket.socket, most_bytes: int) -> bytes:
    """What has arrived; nothing where the connection has ended, one way or another."""
    try:
        return connection.recv(most_bytes)
    except ConnectionError:
        return b""
