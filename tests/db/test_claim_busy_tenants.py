"""db/services/task_service.py: a worker that has enough of a tenant's documents claims those of the others."""

from db.models import Task, new_id
from db.services import lease_service
from db.session import Session


def test_the_tasks_of_busy_tenants_are_passed_over(session: Session) -> None:
    def add(tenant: str) -> None:
        Task.create(kind="purge", tenant_id=tenant, dataset_id=new_id(), document_id=new_id(), blob_key="", due_at=0)

    for tenant in ("a", "b"):
        session.write_now(add, tenant)
    assert session.read_now(lease_service.any_due, ["a"])
    claimed = session.write_now(lease_service.claim, "w", 60.0, "", ["a"])
    assert claimed is not None
    assert claimed.tenant_id == "b"
    assert not session.read_now(lease_service.any_due, ["a"])
    assert session.write_now(lease_service.claim, "w", 60.0, "", ["a"]) is None
    assert session.read_now(lease_service.any_due)
