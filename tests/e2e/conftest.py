import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.server_process import Caller, ServerProcess
from tests.e2e.topology import Topology, require_services, topology

Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts server processes; all are killed when the test ends."""
    servers: list[ServerProcess] = []

    def start_one(
        data_dir: Path | None = None, environ: Mapping[str, str] | None = None, command: str = "serve", ready: bool = True, workers: int = 1
    ) -> ServerProcess:  # fmt: skip
        log_file = tmp_path / f"server-{len(servers)}.log"
        server = ServerProcess(data_dir or tmp_path / "data", log_file=log_file, environ=environ, command=command, workers=workers)
        servers.append(server)
        return server.wait_until_ready() if ready and command == "serve" else server

    yield start_one
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """nginx, two servers of two workers, and the real services: one for all tests, with a tenant for each module."""
    require_services()
    with topology(tmp_path_factory.mktemp("grown")) as running:
        yield running


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One running process with everything embedded, nothing before it."""
    folder = tmp_path_factory.mktemp("server")
    server = ServerProcess(folder / "data", log_file=folder / "server.log")
    try:
        yield server.wait_until_ready()
    finally:
        server.stop()


@pytest.fixture(scope="module", params=["embedded", "grown"])
def server(request: pytest.FixtureRequest) -> Caller:
    """One running server for a module's tests; once everything embedded, once everything that can grow."""
    if request.param == "grown":
        return request.getfixturevalue("grown").tenant(request.module.__name__.rpartition(".")[2])
    return request.getfixturevalue("alone")


def needs(reason: str) -> None:
    """Skip on a laptop, fail in CI: what a test needs is not on this machine."""
    if os.environ.get("CI"):
        pytest.fail(f"in CI this must be there: {reason}")
    pytest.skip(reason)
