"""The listening socket, and what is printed when somebody answers on it. Imports little: the parent of workers needs no more."""

import shlex
import socket
import sys
from typing import TextIO

from rag.errors import SettingsError

BACKLOG = 1024
# in the data directory: the key that is announced
KEY_FILE = "api_key"
# a silent client is asked for a sign of life after a minute, and given up after one more; one that takes nothing in, after ten (in ms)
TCP_PATIENCE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 600_000}


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening TCP socket, `shared` with other processes of this user. Raises `SettingsError` when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _let_go_of_the_dead(listener)
            listener.bind(address)
            listener.listen(BACKLOG)  # from here on callers wait instead of being refused
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {reason_of(error)} (MILLRACE_HOST, MILLRACE_PORT)") from None
    listener.setblocking(False)
    return listener


def _let_go_of_the_dead(listener: socket.socket) -> None:
    """End connections whose client is gone without a word, or reads nothing of what is sent; those accepted inherit this."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in TCP_PATIENCE.items():
        if (option := getattr(socket, name, None)) is not None:  # not every system has them all
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def reason_of(error: OSError) -> str:
    """What the operating system says, in the style of our messages."""
    return (error.strerror or "unknown reason").lower()


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - a comparison, nothing binds here
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announce(url: str, api_key: str, out: TextIO | None = None) -> None:
    """Print where the server is, the key, and a first request that works when pasted."""
    out = sys.stdout if out is None else out
    curl = [
        f"curl -s {url}/api/v1/datasets",
        f"-H {shlex.quote(f'Authorization: Bearer {api_key}')}",
        "-H 'Content-Type: application/json'",
        """-d '{"name": "my first dataset"}'""",
    ]
    print(f"\nMillrace serves on {url}\n\n  API key   {api_key}\n  API docs  {url}/docs\n\nMake a first dataset:\n", file=out)
    print("  " + " \\\n    ".join(curl) + "\n", file=out, flush=True)
