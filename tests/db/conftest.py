"""Every test of a service runs over all three databases: a SQLite file, and private servers that live as long as the test run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from db.address import Address, address_of
from db.models import ALL
from db.session import Session
from rag.threads import Lane
from tests.services import mariadb, postgres
from tests.services.missing import missing

KINDS = ("sqlite", "postgresql", "mysql")
THREADS = 4

Server = postgres.PostgresServer | mariadb.MariaServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    if not postgres.installed():
        missing(f"not installed: {postgres.INSTALL}")
    with postgres.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[Server]:
    if not mariadb.installed():
        missing(f"not installed: {mariadb.INSTALL}")
    with mariadb.mariadb() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: Server) -> str:
    return postgres_server.create_database("services")


@pytest.fixture(scope="session")
def mariadb_url(mariadb_server: Server) -> str:
    return mariadb_server.create_database("services")


@pytest.fixture(params=KINDS)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    """Where a database is, of each kind in turn."""
    urls = {"sqlite": lambda: "", "postgresql": lambda: request.getfixturevalue("postgres_url")}
    url: Callable[[], str] = urls.get(request.param, lambda: request.getfixturevalue("mariadb_url"))
    return address_of(url(), tmp_path)


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("db", threads=THREADS, queue_limit=1000)
    yield lane
    lane.close()


@pytest.fixture
def session(address: Address, lane: Lane) -> Iterator[Session]:
    """A session over an empty database."""
    session = Session(address, lane)
    session.create_tables()
    session.write_now(lambda: [model.delete().execute() for model in ALL])
    session.close()
    yield session
    lane.close()
    session.close()
