"""A real server on a real PostgreSQL or MariaDB: the database dies, hangs, and is shared by servers with data directories of their own."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest

from tests.e2e.conftest import Start
from tests.e2e.server_process import ServerProcess
from tests.services import mariadb, postgres
from tests.services.missing import missing

DatabaseServer = postgres.PostgresServer | mariadb.MariaServer

CALLERS, MADE = 4, 60
TIMEOUT_SECONDS = 1.0


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def database(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    service = postgres if request.param == "postgresql" else mariadb
    if not service.installed():
        missing(f"not installed: {service.INSTALL}")
    with postgres.postgres() if request.param == "postgresql" else mariadb.mariadb() as server:
        yield server


@pytest.fixture
def url(database: DatabaseServer) -> Iterator[str]:
    yield database.create_database("served")
    database.drop_database("served")


@pytest.fixture
def server(url: str, start: Start) -> ServerProcess:
    return start(environ={"MILLRACE_DATABASE_URL": url, "MILLRACE_DATABASE_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS)})


def asked(server: ServerProcess, key: str, method: str, path: str, payload: object = None) -> tuple[int, bool, bytes]:
    """Status, whether it says when to come back, and the body."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = None if payload is None else orjson.dumps(payload)
    request = urllib.request.Request(f"{server.url}/api/v1{path}", data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, False, reply.read()
    except urllib.error.HTTPError as reply:
        return reply.code, "Retry-After" in reply.headers, reply.read()


def names_of(server: ServerProcess) -> list[str]:
    status, first = server.call("GET", "/datasets?page=1&page_size=100")
    assert status == 200
    pages = range(2, first["total_datasets"] // 100 + 2)
    more = [server.call("GET", f"/datasets?page={page}&page_size=100")[1] for page in pages]
    return [dataset["name"] for page in (first, *more) for dataset in page["data"]]


def test_a_database_killed_under_load_costs_503s_and_no_acknowledged_write(server: ServerProcess, database: DatabaseServer) -> None:
    key, enough = server.api_key, threading.Event()
    made: list[str] = []
    strange: list[tuple[int, bytes]] = []
    refused: list[bytes] = []

    def make(caller: int) -> None:
        number = 0
        while not enough.is_set():
            name, number = f"{caller}-{number}", number + 1
            status, again, body = asked(server, key, "POST", "/datasets", {"name": name})
            if status == 200:
                made.append(name)
            elif status == 503 and again:
                refused.append(body)
                enough.wait(0.02)
            else:
                strange.append((status, body))

    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(make, caller) for caller in range(CALLERS)]
        try:
            for _ in range(2):
                before, until = len(made), time.monotonic() + 30
                while len(made) < before + MADE and time.monotonic() < until:
                    time.sleep(0.01)
                database.kill()
                before = len(refused)
                while len(refused) < before + CALLERS:
                    time.sleep(0.01)
                database.start()
            server.wait_until_ready()
        finally:
            enough.set()
        for caller in callers:
            caller.result()
    assert strange == []
    there = names_of(server)
    assert len(set(there)) == len(there)
    assert set(made) <= set(there)
    doubtful = sum(b"not known" in body for body in refused)
    assert len(there) - len(made) <= doubtful


def test_a_hanging_database_is_told_in_time_and_heals_by_itself(server: ServerProcess, database: DatabaseServer) -> None:
    key = server.api_key
    database.pause()
    try:
        began = time.monotonic()
        with ThreadPoolExecutor(30) as pool:
            answers = list(pool.map(lambda number: asked(server, key, "POST", "/datasets", {"name": f"never {number}"}), range(30)))
        assert {(status, again) for status, again, _ in answers} == {(503, True)}
        assert time.monotonic() - began < 15
        assert server.get("/healthz")[0] == 200
        status, body = server.get("/readyz")
        assert status == 503
        assert orjson.loads(body)["parts"]["database"]["ok"] is False
    finally:
        database.resume()
    server.wait_until_ready()
    assert server.call("POST", "/datasets", {"name": "again"})[0] == 200


def test_servers_with_data_directories_of_their_own_share_a_database(
    url: str, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environ = {"MILLRACE_DATABASE_URL": url, "MILLRACE_INGEST_WORKERS": "0"}
    with ThreadPoolExecutor(2) as pool:
        starting = [pool.submit(start, tmp_path_factory.mktemp("data"), environ) for _ in range(2)]
        one, two = (server.result() for server in starting)
    assert one.api_key != two.api_key
    assert one.call("POST", "/datasets", {"name": "shared"})[0] == 200
    assert names_of(two) == ["shared"]
    assert asked(two, one.api_key, "GET", "/datasets")[0] == 200


def test_the_password_is_told_nowhere(url: str, database: DatabaseServer, start: Start, tmp_path_factory: pytest.TempPathFactory) -> None:
    server = start(environ={"MILLRACE_DATABASE_URL": url})
    wrong = start(
        data_dir=tmp_path_factory.mktemp("other"),
        environ={"MILLRACE_DATABASE_URL": database.url("served", password="wr0ng")},
        command="check",
    )
    printed, _ = wrong.process.communicate(timeout=60)
    assert "it refuses our user or password" in printed
    shown = "".join([printed, server.logs, wrong.logs, str(server.call("GET", "/system/status")), str(server.get("/readyz"))])
    assert not any(secret in shown for secret in ("p@ss", "p%40ss", "wr0ng"))
