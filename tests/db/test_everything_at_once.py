"""Whatever callers and workers do at the same time, the counters say what is there, and every task belongs to a document's run."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from db.models import Dataset, Document, Task, Tenant, new_id
from db.services import dataset_service, document_service, lease_service, state_service, task_service
from db.services.document_service import Upload
from db.services.task_service import Purge
from db.session import Session
from tests.db.conftest import THREADS

TENANT = "1" * 32
STEPS = 60


class Everybody:
    """One of those who work on the same tenant; what it does next is random, in an order of its own."""

    def __init__(self, session: Session, number: int) -> None:
        self.session, self.name, self.random = session, f"w{number}", random.Random(number)

    def run(self) -> None:
        steps: list[Callable[[], object]] = [
            self.upload, self.upload, self.upload, self.start, self.start, self.work, self.work, self.work, self.edit, self.edit, self.stop,
            self.delete, self.recount, self.switch, self.rename, self.make_dataset, self.drop_dataset,
        ]  # fmt: skip
        for _ in range(STEPS):
            self.random.choice(steps)()

    def some(self, model: type[Dataset] | type[Document], number: int = 1) -> list[str]:
        ids = self.session.read_now(lambda: [row.id for row in model.select(model.id).where(model.tenant_id == TENANT)])
        return self.random.sample(ids, min(number, len(ids)))

    def make_dataset(self) -> None:
        self.session.write_now(dataset_service.create, TENANT, {"name": "facts", "embedding_model": "m@P"})

    def drop_dataset(self) -> None:
        if self.random.random() < 0.3:
            self.session.write_now(dataset_service.delete, TENANT, self.some(Dataset))

    def upload(self) -> None:
        for dataset in self.some(Dataset):
            pledges = [Purge(new_id(), TENANT, dataset, new_id(), "key", again=False) for _ in range(3)]
            for pledge in pledges:
                self.session.write_now(task_service.pledge, pledge)
            uploads = [Upload(pledge, "a.txt", "", 5, "doc", "txt", "hash", "naive", None, {}) for pledge in pledges]
            self.session.write_now(document_service.add, TENANT, dataset, uploads)

    def start(self) -> None:
        self.session.write_now(task_service.dropped, self.session.write_now(task_service.start, self.some(Document, 4)))

    def stop(self) -> None:
        drops = self.session.write_now(task_service.stop, self.some(Document, 3))
        self.session.write_now(task_service.dropped, drops[: self.random.randrange(4)])

    def work(self) -> None:
        task = self.session.write_now(lease_service.claim, self.name, 60.0)
        if task is None:
            return
        self.session.write_now(lease_service.report, task, self.name, 0.5, "parsing page 1")
        self.session.write_now(lease_service.renew, task, self.name, 60.0)
        if self.random.random() < 0.8:
            self.session.write_now(lease_service.finish, task, self.name, chunk_count=7, token_count=70, message="Task done")
        else:
            self.session.write_now(lease_service.fail, task, self.name, "no", retry=self.random.random() < 0.5)

    def edit(self) -> None:
        for document in self.some(Document):
            self.session.write_now(state_service.add_counts, document, self.random.choice([-1, 1, 2]), 5)

    def recount(self) -> None:
        for document in self.some(Document):
            self.session.write_now(state_service.recount, document, 3)

    def switch(self) -> None:
        for document in self.some(Document):
            values = {"enabled": False, "parser_config": {"chunk_token_num": 9}}
            self.session.write_now(document_service.update, document, values, restart=True)

    def rename(self) -> None:
        for document in self.some(Document):
            self.session.write_now(document_service.update, document, {"name": f"{new_id()}.txt"}, restart=True)
            _, task = self.session.read_now(document_service.to_rename, document)
            self.session.write_now(task_service.renamed, task)

    def delete(self) -> None:
        for dataset in self.some(Dataset):
            documents = self.session.read_now(document_service.search, dataset, document_service.DocumentQuery(page_size=3))[1]
            purges = self.session.write_now(document_service.delete, TENANT, dataset, [document.id for document in documents])
            self.session.write_now(task_service.purged, purges)


def test_counters_and_tasks_stay_right(session: Session) -> None:
    session.write_now(Tenant.create, id=TENANT, name="one")
    for _ in range(2):
        session.write_now(dataset_service.create, TENANT, {"name": "facts", "embedding_model": "m@P"})
    with ThreadPoolExecutor(THREADS) as pool:
        for working in [pool.submit(Everybody(session, number).run) for number in range(THREADS)]:
            working.result()

    def look() -> None:
        datasets = {row.id: row for row in Dataset.select()}
        documents = {row.id: row for row in Document.select()}
        assert Tenant.get_by_id(TENANT).dataset_count == len(datasets)
        assert {document.dataset_id for document in documents.values()} <= set(datasets)
        for dataset in datasets.values():
            own = [document for document in documents.values() if document.dataset_id == dataset.id]
            assert dataset.document_count == len(own)
            assert dataset.chunk_count == sum(document.chunk_count for document in own)
            assert dataset.token_num == sum(document.token_count for document in own)
        parsing = {task.document_id: task for task in Task.select().where(Task.kind == "parse")}
        assert set(parsing) == {document.id for document in documents.values() if document.run == "RUNNING"}
        assert all(task.version == documents[document].version for document, task in parsing.items())
        assert not any(task.document_id in documents for task in Task.select().where(Task.kind == "purge"))
        assert all(task.document_id in documents for task in Task.select().where(Task.kind != "purge"))

    session.read_now(look)
