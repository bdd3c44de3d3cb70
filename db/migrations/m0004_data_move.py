"""The row that holds writes while the data is moved to other parts."""

from db.engines import Engine
from db.models import Move


def up(database: Engine) -> None:
    """Create the table and its one row."""
    database.create_tables([Move], safe=True)
    if not Move.select().where(Move.id == 1).exists():
        Move.create(id=1)
