"""Brings a database to the current schema: numbered steps, each run once, by one server at a time.

SQLite and PostgreSQL do all of it in one transaction. MySQL commits each change of the schema by itself: a step that a crash
cut short runs again from its beginning, so every step passes over what it finds done.
"""

from collections.abc import Callable

from db.engines import Engine
from db.migrations import (
    m0001_initial,
    m0002_data_version,
    m0003_dataset_count,
    m0004_data_move,
    m0005_document_metadata,
    m0006_changed_lists,
)
from db.models import SchemaVersion
from rag.errors import SettingsError

STEPS: tuple[Callable[[Engine], None], ...] = (
    m0001_initial.up, m0002_data_version.up, m0003_dataset_count.up, m0004_data_move.up, m0005_document_metadata.up,
    m0006_changed_lists.up,
)  # fmt: skip


def migrate(database: Engine) -> int:
    """Run the steps that have not run, oldest first, and return how many there were. Call inside a writing transaction.

    Raises `SettingsError` for a database that a newer program has brought further.
    """
    database.lock_schema()
    database.create_tables([SchemaVersion], safe=True)
    done = {row.version for row in SchemaVersion.select()}
    if done and max(done) > len(STEPS):
        raise SettingsError(f"the database has schema {max(done)}, and this program knows {len(STEPS)}: start the newer program")
    todo = [(number, step) for number, step in enumerate(STEPS, start=1) if number not in done]
    for number, step in todo:
        step(database)
        SchemaVersion.create(version=number)
    return len(todo)
