"""The process that forks parser processes: `python -m rag.ingest.nursery CONTROL_FD MODULE:FUNCTION MEMORY_BYTES [PATH ...]`.

It imports the parsers once and then has one thread and no state, so that a fork of it is safe, starts in milliseconds and
shares their memory. The server asks over the control socket to fork a child for a socket it passes, or to kill one. Only the
nursery knows which children live: a process id that was reused is never killed. When the server goes, by whatever way, the
control socket ends, and the nursery kills its children and goes too: a killed server leaves no process behind.

A child serves one job after another from its own socket: frames of four bytes of length and JSON, see `read_frame`.
"""

import ctypes
import gc
import importlib
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from rag.errors import Encrypted, InvalidArgument, MillraceError, ParseFailed, ParserKilled, TooLarge, UnsupportedType

COMMAND = struct.Struct("!cI")  # what to do and with which process
PROCESS_ID = struct.Struct("!I")
FRAME_LENGTH = struct.Struct("!I")
FORK, KILL = b"f", b"k"
REAP_EVERY_SECONDS = 1.0
NICE = 10  # people wait for searches; parsing takes what they leave
RETIRE_RESIDENT_BYTES = 384 << 20  # a child that has grown so large does not serve another job
TOLD_ERRORS = {error.__name__: error for error in (ParseFailed, Encrypted, ParserKilled, TooLarge, UnsupportedType, InvalidArgument)}

_PR_SET_PDEATHSIG = 1

Job = Callable[[Mapping[str, Any], Callable[[Mapping[str, Any]], None]], None]


def main(arguments: list[str]) -> None:
    """Serve the control socket until it ends."""
    os.nice(NICE)
    # systemd tells all of a service's processes to end: a parser that obeyed would be taken for one that its file made crash
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control_fd, target, memory_bytes, *paths = arguments
    # One thread only, or forking were not safe. Read by OpenBLAS when numpy is imported below, and by tokenizers.
    os.putenv("OPENBLAS_NUM_THREADS", "1")
    os.putenv("TOKENIZERS_PARALLELISM", "false")
    os.putenv("RAYON_NUM_THREADS", "1")
    sys.path[:0] = paths
    module, _, function = target.partition(":")
    job = getattr(importlib.import_module(module), function)
    gc.collect()
    gc.freeze()  # what is shared with the children is not touched by their collections
    with socket.socket(fileno=int(control_fd)) as control:
        _Nursery(control, job, int(memory_bytes)).serve()


class _Nursery:
    def __init__(self, control: socket.socket, job: Job, memory_bytes: int) -> None:
        self._control = control
        self._job = job
        self._memory_bytes = memory_bytes
        self._children: set[int] = set()

    def serve(self) -> None:
        try:
            while True:
                readable, _, _ = select.select([self._control], [], [], REAP_EVERY_SECONDS)
                self._reap()
                if readable:
                    command, descriptors, _, _ = socket.recv_fds(self._control, COMMAND.size, 1)
                    if len(command) < COMMAND.size:
                        return
                    action, process_id = COMMAND.unpack(command)
                    if action == FORK and descriptors:
                        self._control.sendall(PROCESS_ID.pack(self._fork(descriptors[0])))
                    elif action == KILL:
                        self._kill(process_id)
        finally:
            for process_id in tuple(self._children):
                self._kill(process_id)

    def _fork(self, descriptor: int) -> int:
        process_id = os.fork()
        if process_id == 0:
            try:
                self._control.close()
                with socket.socket(fileno=descriptor) as channel:
                    serve_jobs(channel, self._job, self._memory_bytes)
            finally:
                os._exit(0)
        os.close(descriptor)
        self._children.add(process_id)
        return process_id

    def _kill(self, process_id: int) -> None:
        if process_id in self._children:
            os.kill(process_id, signal.SIGKILL)
            os.waitpid(process_id, 0)
            self._children.discard(process_id)

    def _reap(self) -> None:
        while self._children:
            process_id, _ = os.waitpid(-1, os.WNOHANG)
            if process_id == 0:
                return
            self._children.discard(process_id)


def serve_jobs(channel: socket.socket, job: Job, memory_bytes: int) -> None:
    """Run the jobs that come over the channel, one at a time, until it ends."""
    _confine(memory_bytes)

    def emit(message: Mapping[str, Any]) -> None:
        frame = orjson.dumps(message)
        channel.sendall(FRAME_LENGTH.pack(len(frame)) + frame)

    while (request := read_frame(channel)) is not None:
        try:
            job(orjson.loads(request), emit)
        except ConnectionError:
            return
        except MemoryError:
            gc.collect()
            limit = f"the file needs more memory than a parser may use ({memory_bytes >> 20} MiB)"
            emit({"failed": ParserKilled.__name__, "message": limit})
            return
        except MillraceError as error:
            emit({"failed": type(error).__name__, "message": str(error)})
        except RecursionError:
            emit({"failed": ParseFailed.__name__, "message": "the file is nested too deeply"})
        except Exception as error:  # noqa: BLE001 - a parser may stumble in any way: its file fails, nothing else
            emit({"failed": ParseFailed.__name__, "message": f"the file cannot be parsed ({type(error).__name__})"})
        else:
            emit({"done": True})
        if _resident_bytes() > RETIRE_RESIDENT_BYTES:
            return


def read_frame(channel: socket.socket) -> bytes | None:
    """The next frame's content, None at the end."""
    header = _read_exactly(channel, FRAME_LENGTH.size)
    return _read_exactly(channel, FRAME_LENGTH.unpack(header)[0]) if header is not None else None


def _read_exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(size - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _confine(memory_bytes: int) -> None:
    """Bound the process: no more address space than it has plus so much, no core file, no output, gone with its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(os.devnull, "r+b") as nothing:
        for stream in range(3):  # native libraries write there what may be a user's text
            os.dup2(nothing.fileno(), stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _address_space_bytes() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _statm(field: int) -> int:
    """One of Linux' figures on the process' memory, in bytes; 0 on other systems."""
    try:
        with open("/proc/self/statm", "rb") as figures:
            return int(figures.read().split()[field]) * resource.getpagesize()
    except OSError:
        return 0


def _address_space_bytes() -> int:
    return _statm(0)


def _resident_bytes() -> int:
    return _statm(1)


if __name__ == "__main__":
    main(sys.argv[1:])
