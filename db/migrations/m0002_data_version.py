"""Datasets say which version of their data they have, so that results can be remembered for as long as it stays."""

from db.engines import Engine


def up(database: Engine) -> None:
    """Add `dataset.data_version`; a database made by this program has it already."""
    if all(column.name != "data_version" for column in database.get_columns("dataset")):
        database.execute_sql("ALTER TABLE dataset ADD COLUMN data_version BIGINT NOT NULL DEFAULT 0")
