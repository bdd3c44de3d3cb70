"""A private nginx with the configuration of deploy/nginx in front of servers of the test's choice."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.services.machine import free_port

DEPLOY = Path(__file__).parents[2] / "deploy" / "nginx"
MISSING = "nginx is not installed: bin/services nginx"
START_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx."""

    url: str
    log: Path


def program() -> str | None:
    """Where nginx is; Debian keeps it out of a user's path."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@contextmanager
def nginx(folder: Path, servers: Sequence[str]) -> Iterator[Nginx]:
    """Run nginx before `servers` (`host:port`) until the block is left. Only addresses differ from what is deployed."""
    port = free_port()
    for file in DEPLOY.glob("*.conf"):
        (folder / file.name).write_text(file.read_text())
    log = folder / "nginx.log"
    upstream = (folder / "upstream.conf").read_text().splitlines()
    deployed = [line for line in upstream if line.strip().startswith("server ")]
    lines = [line for line in upstream if line not in deployed]
    place = upstream.index(deployed[0])
    lines[place:place] = [deployed[0].replace("server-1:9380", server) for server in servers]
    (folder / "upstream.conf").write_text("\n".join(lines))
    whole = (folder / "nginx.conf").read_text()
    for there, here in (
        ("listen 8080", f"listen 127.0.0.1:{port}"),
        ("/dev/stderr", str(log)),
        ("/tmp/nginx", str(folder / "nginx")),
        ("worker_processes auto", "worker_processes 1"),
    ):
        assert there in whole, there
        whole = whole.replace(there, here)
    # a master that is not root cannot change its workers' user, and a root's should read the test's folder
    (folder / "nginx.conf").write_text(f"daemon off;\n{'user root;' if os.getuid() == 0 else ''}\n{whole}")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [str(program()), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(log)], stdout=out, stderr=out
        )
    try:
        _wait_until_it_listens(port, process, log)
        yield Nginx(f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait()


def _wait_until_it_listens(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(0.02)
