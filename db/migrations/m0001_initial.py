"""The first schema."""

from peewee import Database

from db.models import ALL


def up(database: Database) -> None:
    """Create every table and index."""
    database.create_tables(ALL)
