"""The figures of several workers, whichever of them answers."""

import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.figures import DATABASE_SECONDS, figures
from api.metrics import Metrics
from api.siblings import ANSWER_SECONDS, Member
from db.address import Address
from db.session import Session
from rag.threads import Lane


@pytest.fixture
def hanging() -> Iterator[Session]:
    """A session whose database takes connections and never says a word."""
    lane = Lane("db", 2, 10)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        session = Session(Address("postgresql", host=host, port=port, user="u", name="n"), lane, timeout_seconds=60)
        yield session
    lane.close()  # whoever waits for the database has just been told that it is gone
    session.close()


@contextmanager
def member(number: int, folder: Path) -> Iterator[Member]:
    mine, parents = socket.socketpair()
    found = Member(number, mine.detach(), folder)
    with parents, found._control:
        yield found


def values(text: bytes, name: str) -> dict[str, float]:
    """The values of a gauge with one label beside the worker's, by worker."""
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    return {sample.labels["worker"]: sample.value for sample in families[name].samples}


async def test_figures_come_in_time_and_say_who_is_missing_while_the_database_hangs(tmp_path: Path, hanging: Session) -> None:
    parts: list[Any] = [SimpleNamespace(session=hanging, metrics=Metrics()) for _ in range(2)]
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "3"))  # killed
    with member(0, tmp_path) as asked, member(1, tmp_path) as answers, socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(tmp_path / "2"))
        stuck.listen()  # and never answers
        began = time.monotonic()
        async with answers.answering(partial(figures, parts[1])):
            text = await asked.figures(await figures(parts[0]))
    assert time.monotonic() - began < 2 * (DATABASE_SECONDS + ANSWER_SECONDS)
    assert values(text, "millrace_worker_up") == {"0": 1, "1": 1, "2": 0, "3": 0}
    assert set(values(text, "process_start_time_seconds")) == {"0", "1"}
    assert all(math.isnan(value) for value in values(text, "millrace_ingest_backlog").values())
