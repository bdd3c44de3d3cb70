"""Lists of datasets, documents and sessions among 100,000 rows against 100, per database: `python -m load.metadata_bench`.

The services are called as the routes call them (one transaction: a total and a page of 30), without the HTTP around them, which
is the same for both. Large and small database take turns, so that what else the machine does meets both. The servers are private
ones, the large database has 5,000 further tenants. Goal: p95 of the large one at most twice that of the small one.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from db.address import Address, address_of
from db.services import conversation_service, dataset_service, document_service
from db.services.dataset_service import DatasetQuery
from db.services.document_service import DocumentQuery
from db.session import Session
from rag.threads import Lane
from tests.db.many_rows import CHAT, DATASET, TENANT, fill
from tests.services import mariadb, postgres

FEW, MANY, TENANTS, PAGE_SIZE = 100, 100_000, 5_000, 30
ROUNDS, CALLS = 25, 20
GOAL = 2.0

List = Callable[[Session, int], Any]
LISTS: dict[str, List] = {
    "datasets": lambda session, page: session.read_now(dataset_service.search, TENANT, DatasetQuery(page=page)),
    "documents": lambda session, page: session.read_now(document_service.search, DATASET, DocumentQuery(page=page)),
    "sessions": lambda session, page: session.read_now(conversation_service.listing, TENANT, CHAT, page=page),
}


def main() -> None:
    """Print a table: p50 and p95 in milliseconds of both sizes and their ratio, for each database that is installed.

    Exit code 1 when a ratio misses the goal.
    """
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=MANY, help="of the large database")
    arguments.add_argument("--pages", type=int, default=3, help="the pages asked for are random ones up to this")
    options = arguments.parse_args()
    worst = 0.0
    print(f"{'database':12} {'list':10} {'few p50':>9} {'few p95':>9} {'many p50':>9} {'many p95':>9} {'p95 ratio':>9}   (ms)")
    for kind, databases in DATABASES.items():
        with databases() as addresses:
            if addresses is None:
                print(f"{kind:12} not installed")
                continue
            for address, rows, tenants in zip(addresses, (FEW, options.rows), (0, TENANTS), strict=True):
                with session_of(address) as session:
                    session.create_tables()
                    fill(session, rows, other_tenants=tenants)
            worst = max(worst, _measure(kind, addresses, options.pages))
    raise SystemExit(int(worst > GOAL))


def _measure(kind: str, addresses: list[Address], pages: int) -> float:
    """Print the database's lines; the worst ratio."""
    times: dict[tuple[str, int], list[float]] = {(name, size): [] for name in LISTS for size in range(2)}
    for _ in range(ROUNDS):
        for size, address in enumerate(addresses):
            with session_of(address) as session:
                for name, listed in LISTS.items():
                    times[name, size] += _seconds(session, listed, pages)
    ratios = []
    for name in LISTS:
        few, many = (np.percentile(np.array(times[name, size]) * 1000, [50, 95]) for size in range(2))
        print(f"{kind:12} {name:10} {few[0]:9.2f} {few[1]:9.2f} {many[0]:9.2f} {many[1]:9.2f} {many[1] / few[1]:9.2f}")
        ratios.append(many[1] / few[1])
    return max(ratios)


def _seconds(session: Session, listed: List, pages: int) -> list[float]:
    for page in range(1, pages + 1):
        listed(session, page)
    result = []
    for _ in range(CALLS):
        page = random.randint(1, pages)
        started = time.perf_counter()
        listed(session, page)
        result.append(time.perf_counter() - started)
    return result


@contextmanager
def session_of(address: Address) -> Iterator[Session]:
    lane = Lane("db", 1, 1)
    session = Session(address, lane, timeout_seconds=120)
    try:
        yield session
    finally:
        session.close()
        lane.close()


@contextmanager
def _files() -> Iterator[list[Address] | None]:
    with tempfile.TemporaryDirectory() as folder:
        yield [Address("sqlite", path=Path(folder) / f"{name}.sqlite3") for name in ("few", "many")]


@contextmanager
def _postgres() -> Iterator[list[Address] | None]:
    if not postgres.installed():
        yield None
        return
    with postgres.postgres() as server:
        with server.connect() as connection:  # the large database's filling is not to be cleaned up while it is measured
            connection.execute("ALTER SYSTEM SET autovacuum = off")
            connection.execute("SELECT pg_reload_conf()")
        yield [address_of(server.create_database(name), Path()) for name in ("few", "many")]


@contextmanager
def _mariadb() -> Iterator[list[Address] | None]:
    if not mariadb.installed():
        yield None
        return
    with mariadb.mariadb() as server:
        yield [address_of(server.create_database(name), Path()) for name in ("few", "many")]


DATABASES = {"sqlite": _files, "postgresql": _postgres, "mariadb": _mariadb}  # what gives two empty ones, None where it is not installed


if __name__ == "__main__":
    main()
