"""Brings a database to the current schema: numbered steps, each run once, all in one transaction."""

from collections.abc import Callable

from peewee import Database

from db.migrations import m0001_initial
from db.models import SchemaVersion

STEPS: tuple[Callable[[Database], None], ...] = (m0001_initial.up,)


def migrate(database: Database) -> int:
    """Run the steps that have not run, oldest first, and return how many there were. Call inside a writing transaction."""
    database.create_tables([SchemaVersion], safe=True)
    done = {row.version for row in SchemaVersion.select()}
    todo = [(number, step) for number, step in enumerate(STEPS, start=1) if number not in done]
    for number, step in todo:
        step(database)
        SchemaVersion.create(version=number)
    return len(todo)
