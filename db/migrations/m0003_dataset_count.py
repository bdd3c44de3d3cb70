"""Tenants count their datasets, so that a list of datasets takes as long for many as for few."""

from db.engines import Engine


def up(database: Engine) -> None:
    """Add the counter, set it, and add the index by which due tasks are found."""
    if "dataset_count" not in {column.name for column in database.get_columns("tenant")}:
        database.execute_sql("ALTER TABLE tenant ADD COLUMN dataset_count INTEGER NOT NULL DEFAULT 0")
    if not any(index.columns == ["due_at"] for index in database.get_indexes("task")):
        database.execute_sql("CREATE INDEX task_due_at ON task (due_at)")
    database.execute_sql("UPDATE tenant SET dataset_count = (SELECT COUNT(*) FROM dataset WHERE dataset.tenant_id = tenant.id)")
