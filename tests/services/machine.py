"""Ports and processes of this machine."""

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def stop(pid: int) -> None:
    """Stop the process in its tracks. On a busy machine its threads go on for a while after the signal: return when none does."""
    os.kill(pid, signal.SIGSTOP)
    while any(thread.read_text().rpartition(")")[2].split()[0] != "T" for thread in Path("/proc").glob(f"{pid}/task/*/stat")):
        time.sleep(0.001)


def children(pid: int) -> list[int]:
    """The processes that this one started, by whichever of its threads, and that run."""
    found: list[int] = []
    for thread in Path("/proc").glob(f"{pid}/task/*/children"):
        with suppress(OSError):
            found += map(int, thread.read_text().split())
    return found
