"""Conditions on metadata, its summary, examples and facets among 100,000 documents of ten keys: `python -m load.conditions_bench`.

On each database that is installed, by the index of the metadata (`db.services.metadata_rows`) and by reading and judging the metadata
of all documents, in turns; medians of the rounds, and their ratio. Three keys have 3, 36 and 2,000 values, one is different in each
document. The servers are private ones, and their own CPU is not in the CPU shown.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from api import document_wire
from db.models import Document
from db.services import document_service, metadata_rows, metadata_service
from db.services.document_service import DocumentQuery
from db.services.metadata_conditions import fulfils
from db.session import Session
from load.metadata_bench import DATABASES, session_of
from rag.flow.metadata_filter import MAX_KEYS, MAX_VALUES
from tests.db.many_rows import DATASET, TENANT, fill

ROWS, ROUNDS = 100_000, 3
CONDITIONS = (
    ("language", "not is", "de"),
    ("year", "is", 2024),
    ("author", "is", "author 7"),
    ("price", ">", 99.9),
    ("day", ">", "2025-01-01"),
    ("title", "contains", "9999"),
)

Ask = Callable[[Session], Any]


def main() -> None:
    """Print a table: milliseconds of wall time and of this process's CPU, by the index and by all documents."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=ROWS, help="documents")
    arguments.add_argument("--databases", nargs="*", choices=DATABASES, default=list(DATABASES))
    options = arguments.parse_args()
    print(f"{'database':11} {'asked':28} {'index':>8} {'cpu':>8} {'all':>8} {'cpu':>8} {'ratio':>7}   (ms, ms of CPU)")
    for kind in options.databases:
        with DATABASES[kind]() as addresses:
            if addresses is None:
                print(f"{kind:11} not installed")
                continue
            with session_of(addresses[0]) as session:
                session.create_tables()
                fill(session, options.rows)
                started = time.process_time()
                session.write_now(_describe)
                print(f"{kind:11} written in {time.process_time() - started:.1f} s of CPU")
                _measure(kind, session)


def _measure(kind: str, session: Session) -> None:
    for name, (by_index, by_reading) in _questions().items():
        times = [(*_seconds(by_index, session), *_seconds(by_reading, session)) for _ in range(ROUNDS)]
        index, index_cpu, whole, whole_cpu = (statistics.median(column) * 1000 for column in zip(*times, strict=True))
        print(f"{kind:11} {name:28} {index:8.1f} {index_cpu:8.1f} {whole:8.1f} {whole_cpu:8.1f} {whole / index:7.1f}")


def _questions() -> dict[str, tuple[Ask, Ask]]:
    questions: dict[str, tuple[Ask, Ask]] = {}
    for name, operator, value in CONDITIONS:
        condition = {"conditions": [{"name": name, "comparison_operator": operator, "value": value}]}
        questions[f"{name} {operator} {value}"] = (
            lambda session, condition=condition: session.read_now(metadata_service.documents_matching, TENANT, [DATASET], condition),
            lambda session, condition=condition: [brief.id for brief in _all(session) if fulfils(brief.meta_fields, condition)],
        )
    questions["summary"] = lambda session: session.read_now(metadata_service.summary, TENANT, [DATASET]), _summary_of_all
    questions["examples for a chat model"] = (
        lambda session: session.read_now(metadata_service.examples, TENANT, [DATASET], None, MAX_KEYS, MAX_VALUES),
        _summary_of_all,
    )
    questions["facets"] = (
        lambda session: document_wire.facets(session.read_now(document_service.facets, DATASET, DocumentQuery())),
        _summary_of_all,
    )
    return questions


def _summary_of_all(session: Session) -> dict[str, Any]:
    return metadata_service.summarise((*item, 1) for brief in _all(session) for item in brief.meta_fields.items())


def _all(session: Session) -> list[document_service.DocumentBrief]:
    return session.read_now(document_service.briefs, TENANT, [DATASET])


def _seconds(ask: Ask, session: Session) -> tuple[float, float]:
    started, cpu = time.perf_counter(), time.process_time()
    ask(session)
    return time.perf_counter() - started, time.process_time() - cpu


def _describe() -> None:
    dice = random.Random(1)
    ids = [row_id for (row_id,) in Document.select(Document.id).order_by(Document.id).tuples()]
    metas = [(row_id, DATASET, _meta(dice, number)) for number, row_id in enumerate(ids)]
    for row_id, _, meta in metas:
        Document.update(meta_fields=meta).where(Document.id == row_id).execute()
    metadata_rows.put(metas)


def _meta(dice: random.Random, number: int) -> dict[str, Any]:
    day = f"{dice.randint(2000, 2025)}-{dice.randint(1, 12):02}-{dice.randint(1, 28):02}"
    return {
        "language": dice.choice(["en", "de", "fr"]),
        "year": dice.randint(1990, 2025),
        "author": f"author {dice.randrange(2_000)}",
        "price": round(dice.random() * 100, 2),
        "day": day,
        "title": f"Title of document {number}",
        "tags": dice.sample(["red", "green", "blue", "big", "small", "new"], 2),
        "department": dice.choice(["sales", "law", "it"]),
        "changed": f"{day}T{dice.randint(0, 23):02}:{dice.randint(0, 59):02}:00",
        "open": dice.choice(["yes", "no"]),
    }


if __name__ == "__main__":
    main()
