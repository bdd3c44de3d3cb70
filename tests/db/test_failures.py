"""db/session.py over real servers that fail: killed, hanging, refusing; and what is promised of writes meanwhile."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from peewee import IntegrityError

from db.address import address_of
from db.dialect import locked
from db.migrate import STEPS
from db.models import ALL, SchemaVersion, Tenant, new_id, proxy
from db.services import tenant_service
from db.session import Session
from rag.errors import DatabaseUnavailable, OutcomeUnknown
from rag.threads import Lane
from tests.db.conftest import THREADS, Server
from tests.db.programs import let_go_together

SECRET = "p@ss:w/rd"


@pytest.fixture(params=["postgres_server", "mariadb_server"])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    yield server.create_database("failures")
    server.drop_database("failures")


@pytest.fixture
def session(url: str, lane: Lane, tmp_path: Path) -> Iterator[Session]:
    session = Session(address_of(url, tmp_path), lane, timeout_seconds=1.0)
    session.create_tables()
    yield session
    lane.close()
    session.close()


def names(session: Session) -> list[str]:
    return [tenant.name for tenant in session.read_now(tenant_service.list_tenants)]


def until_well(session: Session) -> None:
    """Return when the database answers again."""
    end = time.monotonic() + 20
    while True:
        try:
            return session.read_now(lambda: None)
        except DatabaseUnavailable:
            assert time.monotonic() < end
            time.sleep(0.05)


def insert(name: str) -> None:
    Tenant.create(name=name)


# ---------------------------------------------------------------------------------------------------- killed
def test_a_database_killed_under_load_loses_no_acknowledged_write_and_doubles_none(session: Session, server: Server) -> None:
    made: list[str] = []
    refused: list[str] = []
    unknown: list[str] = []
    enough = threading.Event()

    def write(writer: int) -> None:
        number = 0
        while not enough.is_set():
            name, number = f"{writer}-{number}", number + 1
            try:
                session.write_now(insert, name)
                made.append(name)
            except OutcomeUnknown:
                unknown.append(name)
            except DatabaseUnavailable:
                refused.append(name)
                enough.wait(0.01)

    with ThreadPoolExecutor(THREADS) as pool:
        writers = [pool.submit(write, writer) for writer in range(THREADS)]
        try:
            for _ in range(3):
                before = len(made)
                while len(made) < before + 100:
                    time.sleep(0.01)
                server.kill()
                server.start()
            until_well(session)
        finally:
            enough.set()
        for writer in writers:
            writer.result()
    there = names(session)
    assert len(set(there)) == len(there)
    assert set(made) <= set(there)
    assert set(there) <= {*made, *unknown}
    assert refused or unknown


def test_connections_that_were_lost_while_they_rested_cost_no_error(session: Session, server: Server) -> None:
    session.write_now(insert, "before")
    server.kill()
    server.start()
    session.write_now(insert, "after")
    assert names(session) == ["after", "before"]


# ---------------------------------------------------------------------------------------------------- hanging
async def test_a_hanging_database_is_given_up_in_time_and_then_at_once(session: Session, server: Server) -> None:
    await asyncio.gather(*(session.read(lambda: None) for _ in range(THREADS)))
    server.pause()
    try:
        began = time.monotonic()
        results = await asyncio.gather(*(session.write(insert, f"t{number}") for number in range(50)), return_exceptions=True)
        took = time.monotonic() - began
        assert all(isinstance(result, DatabaseUnavailable) for result in results)
        assert took < 12  # one statement's time and one attempt to connect, not 50 / 4 of them
    finally:
        server.resume()
    until_well(session)
    await session.write(insert, "well")
    assert "well" in await session.read(lambda: [row.name for row in Tenant.select()])


def test_a_row_that_stays_locked_is_given_up_in_time(session: Session) -> None:
    session.write_now(insert, "held")
    holding, enough = threading.Event(), threading.Event()

    def hold() -> None:
        tenant_service.hold("held")
        holding.set()
        enough.wait(20)

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(session.write_now, hold)
        holding.wait(10)
        try:
            with pytest.raises(DatabaseUnavailable, match=r"locked for too long|took too long|in time"):
                session.write_now(tenant_service.hold, "held")
        finally:
            enough.set()
        holder.exception(20)  # whether the holder was given up, too, does not matter


# ---------------------------------------------------------------------------------------------------- meeting others
def test_a_deadlock_is_begun_again(session: Session) -> None:
    for name in ("a", "b"):
        session.write_now(insert, name)
    both = threading.Barrier(2)
    tries: list[str] = []

    def cross(first: str, second: str) -> None:
        tries.append(first)
        tenant_service.hold(first)
        if len(tries) <= 2:
            both.wait(10)
        Tenant.update(update_time=len(tries)).where(Tenant.name == second).execute()

    patient = Session(session.address, Lane("db", 1, 1))
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(patient.write_now, cross, *pair) for pair in (("a", "b"), ("b", "a"))]
        for call in calls:
            call.result(20)
    assert len(tries) > 2
    patient.close()


@pytest.fixture
def postgres_session(postgres_server: Server, lane: Lane, tmp_path: Path) -> Iterator[Session]:
    """A session over PostgreSQL, which alone has transactions that fail instead of waiting (SQLSTATE 40001)."""
    session = Session(address_of(postgres_server.create_database("serialisable"), tmp_path), lane)
    session.create_tables()
    yield session
    lane.close()
    session.close()
    postgres_server.drop_database("serialisable")


class Meeting:
    """Services whose first two runs meet: both have read before either writes, so that one of them must not be made."""

    def __init__(self) -> None:
        self.runs = 0
        self.read, self.written = threading.Barrier(2), threading.Barrier(2)

    def update(self) -> None:
        """One of the two fails at its UPDATE."""
        meets = self._begin()
        seen = Tenant.get().update_time
        if meets:
            self.read.wait(10)
        Tenant.update(update_time=seen + 1).execute()

    def insert(self) -> None:
        """Neither waits for the other, and one of them fails at its COMMIT."""
        meets = self._begin()
        seen = Tenant.select().count()
        if meets:
            self.read.wait(10)
        Tenant.create(name=f"after {seen} by {new_id()}")
        if meets:
            self.written.wait(10)

    def _begin(self) -> bool:
        self.runs += 1
        proxy.obj.execute_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        return self.runs <= 2


def test_a_transaction_that_could_not_be_serialised_is_begun_again(postgres_session: Session) -> None:
    postgres_session.write_now(lambda: Tenant.create(name="counted", update_time=0))
    meeting = Meeting()
    with ThreadPoolExecutor(2) as pool:
        for call in [pool.submit(postgres_session.write_now, meeting.update) for _ in range(2)]:
            call.result(20)
    assert meeting.runs > 2
    assert postgres_session.read_now(lambda: Tenant.get().update_time) == 2


def test_a_conflict_that_shows_at_the_commit_is_begun_again_and_nothing_is_unknown(postgres_session: Session) -> None:
    meeting = Meeting()
    with ThreadPoolExecutor(2) as pool:
        for call in [pool.submit(postgres_session.write_now, meeting.insert) for _ in range(2)]:
            call.result(20)
    assert meeting.runs > 2
    assert [name.split(" by ")[0] for name in names(postgres_session)] == ["after 0", "after 1"]


async def test_a_conflict_is_no_unknown_outcome_where_nothing_may_be_begun_again(postgres_session: Session) -> None:
    meeting = Meeting()
    calls = (postgres_session.write_once(meeting.insert) for _ in range(2))
    (refused,) = (result for result in await asyncio.gather(*calls, return_exceptions=True) if result is not None)
    assert isinstance(refused, DatabaseUnavailable)
    assert str(refused) == "the database cannot answer: others changed the same rows at the same time"
    assert [name.split(" by ")[0] for name in names(postgres_session)] == ["after 0"]


async def test_a_service_that_changes_something_else_too_is_never_begun_again(session: Session, server: Server) -> None:
    runs: list[int] = []

    def lose_connection() -> None:
        runs.append(1)
        list(Tenant.select())
        server.kill()
        list(Tenant.select())

    try:
        with pytest.raises(DatabaseUnavailable):
            await session.write_once(lose_connection)
    finally:
        server.start()
    assert len(runs) == 1


def test_a_read_sees_one_moment(session: Session) -> None:
    session.write_now(insert, "first")
    read, written = threading.Event(), threading.Event()

    def count_twice() -> tuple[int, int]:
        before = Tenant.select().count()
        read.set()
        written.wait(10)
        return before, Tenant.select().count()

    with ThreadPoolExecutor(1) as pool:
        counts = pool.submit(session.read_now, count_twice)
        read.wait(10)
        session.write_now(insert, "second")
        written.set()
        assert counts.result(10) == (1, 1)


def test_a_read_cannot_write(session: Session) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - what it is called differs; nothing is written
        session.read_now(insert, "never")
    assert names(session) == []


def test_an_error_that_a_service_passes_over_is_not_taken_for_success(session: Session) -> None:
    def twice() -> None:
        insert("same")
        with suppress(Exception):  # as a careless service would
            insert("same")

    if session.kind == "mysql":
        session.write_now(twice)  # only the statement failed there
        assert names(session) == ["same"]
    else:
        with pytest.raises(DatabaseUnavailable):
            session.write_now(twice)
        assert names(session) == []


STARTING = """
import sys
from pathlib import Path
from db.address import address_of
from db.session import Session
from rag.threads import Lane
session = Session(address_of(sys.argv[1], Path()), Lane("db", 1, 1))
print("ready", flush=True)
sys.stdin.readline()
session.create_tables()
"""


def test_servers_that_start_at_once_bring_the_schema_up_once(server: Server, tmp_path: Path) -> None:
    url = server.create_database("several")
    session = Session(address_of(url, tmp_path), Lane("db", 1, 1))
    try:
        with let_go_together(STARTING, [[url]] * 4) as starting:
            for process in starting:
                process.communicate(timeout=60)
                assert process.returncode == 0
        assert session.read_now(lambda: SchemaVersion.select().count()) == len(STEPS)
        assert session.read_now(lambda: [model.select().count() for model in ALL]) == [0] * len(ALL)
    finally:
        session.close()
        server.drop_database("several")


def test_a_schema_that_a_crash_left_without_its_indexes_is_completed(server: Server, tmp_path: Path) -> None:
    session = Session(address_of(server.create_database("halfway"), tmp_path), Lane("db", 1, 1))
    try:
        session.write_now(lambda: [model._schema.create_table() for model in ALL])
        session.create_tables()
        session.write_now(insert, "once")
        with pytest.raises(IntegrityError):
            session.write_now(insert, "once")
        for model in ALL:
            indexes = session.read_now(lambda model=model: model._meta.database.get_indexes(model._meta.table_name))
            assert {index._name for index in model._meta.fields_to_index()} <= {index.name for index in indexes}
    finally:
        session.close()
        server.drop_database("halfway")


# ---------------------------------------------------------------------------------------------------- refusing
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "wr0ng"}, "it refuses our user or password"),
        ({"user": "nobody"}, "it refuses our user or password"),
        ({"database": "no_such_database"}, "it has no database"),
    ],
)
def test_what_is_wrong_is_named_without_secrets(server: Server, tmp_path: Path, change: dict[str, str], reason: str) -> None:
    address = address_of(server.url(**{"database": "failures", **change}), tmp_path)
    session = Session(address, Lane("db", 1, 1))
    for _ in range(2):  # the second time nobody asks the server
        with pytest.raises(DatabaseUnavailable, match=reason) as error:
            session.read_now(tenant_service.list_tenants)
        assert not any(secret in f"{error.value} {address} {address!r}" for secret in (SECRET, "wr0ng"))


def test_an_address_that_nobody_listens_at_is_named(tmp_path: Path, server: Server) -> None:
    scheme = "postgresql" if server.kind == "postgresql" else "mysql"
    session = Session(address_of(f"{scheme}://user:secret@127.0.0.1:1/name", tmp_path), Lane("db", 1, 1))
    with pytest.raises(DatabaseUnavailable, match="nothing listens at its address"):
        session.read_now(tenant_service.list_tenants)


@contextmanager
def session_as(user: str, may: str, server: Server, folder: Path, *, connections: int = 10) -> Iterator[Session]:
    """A session of a user who may do this with all tables of the database, by so many connections."""
    if server.kind == "postgresql":
        with server.connect("failures") as connection:
            connection.execute(f"CREATE ROLE {user} LOGIN CONNECTION LIMIT {connections} PASSWORD '{user}'")
            connection.execute(f"GRANT {may} ON ALL TABLES IN SCHEMA public TO {user}")
    else:
        server.execute(f"CREATE USER {user}@'%' IDENTIFIED BY '{user}' WITH MAX_USER_CONNECTIONS {connections}")
        server.execute(f"GRANT {may} ON failures.* TO {user}@'%'")
    session = Session(address_of(server.url("failures", user, user), folder), Lane("db", 1, 1))
    try:
        yield session
    finally:
        session.close()
        if server.kind == "postgresql":
            with server.connect("failures") as connection:
                connection.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")
        else:
            server.execute(f"DROP USER {user}@'%'")


@pytest.mark.usefixtures("session")
def test_too_many_connections_are_told(server: Server, tmp_path: Path) -> None:
    with session_as("few", "ALL", server, tmp_path, connections=1) as few:
        few.read_now(tenant_service.list_tenants)
        with ThreadPoolExecutor(1) as pool, pytest.raises(DatabaseUnavailable, match="too many connections"):
            pool.submit(few.read_now, tenant_service.list_tenants).result()


@pytest.mark.usefixtures("session")
def test_a_user_who_may_only_read_is_told_so(server: Server, tmp_path: Path) -> None:
    with session_as("reader", "SELECT", server, tmp_path) as reader:
        assert reader.read_now(tenant_service.list_tenants) == []
        with pytest.raises(DatabaseUnavailable, match="our user may not do that"):
            reader.write_now(insert, "never")


def test_rows_are_held_until_the_transaction_ends(session: Session) -> None:
    session.write_now(insert, "counted")

    def add_one() -> None:
        row = locked(Tenant.select().where(Tenant.name == "counted")).get()
        Tenant.update(update_time=row.update_time + 1).where(Tenant.id == row.id).execute()

    session.write_now(lambda: Tenant.update(update_time=0).execute())
    with ThreadPoolExecutor(THREADS) as pool:
        for change in [pool.submit(session.write_now, add_one) for _ in range(100)]:
            change.result()
    assert session.read_now(lambda: Tenant.get().update_time) == 100
