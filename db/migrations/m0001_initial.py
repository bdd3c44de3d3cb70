"""The first schema."""

from db.engines import Engine
from db.models import ALL


def up(database: Engine) -> None:
    """Create every table and index."""
    database.create_tables(ALL)
