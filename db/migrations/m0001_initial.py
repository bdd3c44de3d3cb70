"""The first schema."""

from collections.abc import Sequence

from peewee import Model

from db.engines import Engine
from db.models import ALL


def up(database: Engine) -> None:
    """Create every table and index."""
    create(database, ALL)


def create(database: Engine, models: Sequence[type[Model]]) -> None:
    """Create the tables and their indexes; of a table that is there already, the indexes that it lacks.

    MySQL commits each statement by itself, and peewee leaves a table alone that it finds there: without the unique indexes that a
    crash had kept it from making, names could be doubled for ever.
    """
    database.create_tables(models)
    for model in models:
        there = {index.name for index in database.get_indexes(model._meta.table_name)}
        for index in model._meta.fields_to_index():
            if index._name not in there:
                database.execute(index.safe(False))
