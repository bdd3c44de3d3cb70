"""The process that `api.search_process` asks: `python -m api.search_program FOLDER ANALYSER LOG_LEVEL LOG_FORMAT DESCRIPTOR ...`.

One thread for each descriptor. It takes a question, searches the embedded store in the folder and writes the answer, until the other
end is closed. Signals are for the server, which ends this process by closing the sockets.
"""

import pickle
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from api import logs
from api.collector import spare_the_collector
from api.search_process import LENGTH
from rag.errors import MillraceError
from rag.nlp.find import find
from rag.store.embedded import EmbeddedStore
from rag.types import Chunk, ChunkTerms

log = structlog.get_logger("millrace.searcher")


def main(arguments: Sequence[str]) -> None:
    """Answer until nobody is there to ask."""
    folder, analyser_version, log_level, log_format, *descriptors = arguments
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logs.configure(log_level, log_format)
    store = EmbeddedStore(Path(folder), analyser_version=analyser_version, analyse=_terms_of)
    spare_the_collector()
    threads = [threading.Thread(target=_serve, args=(store, socket.socket(fileno=int(number))), daemon=True) for number in descriptors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()


def _terms_of(chunk: Chunk) -> ChunkTerms:
    # imported where an index is built anew, which is hardly ever: 33 MB of dictionaries
    from rag.nlp.tokenize import terms_of

    return terms_of(chunk)


def _serve(store: EmbeddedStore, line: socket.socket) -> None:
    with line, suppress(ConnectionError):
        line.sendall(LENGTH.pack(0))
        while header := _read(line, LENGTH.size):
            wanted = pickle.loads(_read(line, LENGTH.unpack(header)[0]))  # noqa: S301 - the server's own, over a private socket
            try:
                answer = pickle.dumps(find(store, wanted), pickle.HIGHEST_PROTOCOL)
            except MillraceError as error:
                answer = pickle.dumps(error)
            except Exception as error:  # a boundary: the server answers 500, as if it had searched itself
                log.exception("search_failed")
                answer = pickle.dumps(RuntimeError(f"the search failed: {type(error).__name__}"))
            line.sendall(LENGTH.pack(len(answer)) + answer)


def _read(line: socket.socket, length: int) -> bytes:
    """So many bytes; none when the other end is closed."""
    received = bytearray(length)
    view, filled = memoryview(received), 0
    while filled < length:
        count = line.recv_into(view[filled:])
        if not count:
            return b""
        filled += count
    return bytes(received)


if __name__ == "__main__":
    main(sys.argv[1:])
