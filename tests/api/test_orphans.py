"""Files that nobody owns and rows whose file is gone, told apart from uploads under way."""

import io
from collections.abc import AsyncIterator

from api import orphans
from api.intake import Intake
from api.upload import Uploader
from db.services import dataset_service
from rag.errors import Unavailable
from tests.api.conftest import Server


async def test_files_and_rows_that_belong_together_are_no_strays(api: Server) -> None:
    dataset = await api.dataset()
    for number in range(3):
        await api.document(dataset, f"{number}.txt")
    assert await orphans.find(api.parts) == orphans.Strays((), (), 3)


async def test_a_file_that_nobody_owns_is_found_and_removed_alone(api: Server) -> None:
    document_id = await api.document(await api.dataset())
    key = f"{api.tenant}/ab/{'9' * 32}"
    api.parts.blobs.put(key, io.BytesIO(b"left over"))
    found = await orphans.find(api.parts)
    assert found == orphans.Strays((key,), (), 2)
    await orphans.remove(api.parts, found.files)
    assert await orphans.find(api.parts) == orphans.Strays((), (), 1)
    assert document_id in next(api.parts.blobs.list())


async def test_another_file_with_a_known_documents_id_is_a_stray(api: Server) -> None:
    document_id = await api.document(await api.dataset())
    key = f"{api.tenant}/zz/{document_id}".replace("zz", "00" if document_id[6:8] != "00" else "01")
    api.parts.blobs.put(key, io.BytesIO(b"left over"))
    assert (await orphans.find(api.parts)).files == (key,)


async def test_files_that_are_not_ours_are_left_alone(api: Server) -> None:
    """A bucket without a prefix may hold other people's, or another installation's."""
    for key in ("reports/2026", "probe/something", f"{'8' * 32}/ab/{'9' * 32}", f"{api.tenant}/{'9' * 32}"):
        api.parts.blobs.put(key, io.BytesIO(b"theirs"))
    assert await orphans.find(api.parts) == orphans.Strays((), (), 0)


async def test_a_document_whose_file_is_gone_is_named(api: Server) -> None:
    dataset = await api.dataset()
    kept, lost = await api.document(dataset, "kept.txt"), await api.document(dataset, "lost.txt")
    key = next(key for key in api.parts.blobs.list() if lost in key)
    api.parts.blobs.delete(key)
    assert (await orphans.find(api.parts)).documents == (lost,)
    assert kept != lost


async def test_an_upload_under_way_is_nobodys_prey(api: Server) -> None:
    """Its pieces are in the blob store and its rows are not written yet."""
    dataset = await api.parts.session.read(dataset_service.get, api.tenant, await api.dataset())
    intake = Intake(api.parts, Uploader(api.parts.blobs, api.parts.lanes.blob, 1 << 20), api.tenant, dataset)
    looked: list[orphans.Strays] = []

    async def content() -> AsyncIterator[bytes]:
        yield bytes(1 << 19)
        yield bytes(1 << 19)
        looked.append(await orphans.find(api.parts))

    async def nothing() -> None:
        pass

    async with intake:
        pledge = await intake._pledge()
        await intake._uploader.store(pledge.blob_key, content(), nothing)
        looked.append(await orphans.find(api.parts))
    assert [found.files for found in looked] == [(), ()]


async def test_a_deletion_under_way_is_left_to_it(api: Server) -> None:
    """The row is gone, the file is there, and a task has pledged to remove it."""
    dataset = await api.dataset()
    document_id = await api.document(dataset)
    delete = api.parts.blobs.delete

    def cannot(key: str) -> None:
        raise Unavailable("the blob store does not answer")

    api.parts.blobs.delete = cannot  # type: ignore[method-assign]
    (await api.call("DELETE", f"/datasets/{dataset}/documents", {"ids": [document_id]})).data  # noqa: B018
    api.parts.blobs.delete = delete  # type: ignore[method-assign]
    assert await orphans.find(api.parts) == orphans.Strays((), (), 1)
