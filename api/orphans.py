"""Files that no row owns, and rows whose file is gone: finding them, and removing the former.

An upload pledges its key in the database before it stores a byte, and a deletion pledges to remove the file in the transaction that
removes the row. So a file that was listed, and that afterwards neither a document nor a task knows, is nobody's, however young it is.

Only what has a key as we make them, of a tenant of ours, is looked at: a bucket may hold other people's files, or another
installation's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from api.parts import Parts
from db.services import blob_service
from rag.errors import NotFound
from rag.ports import PROBES
from rag.types import ID_PATTERN

ROWS_AT_ONCE = 5_000
_KEY = re.compile(rf"(?P<tenant>{ID_PATTERN})/[0-9a-f]{{2}}/{ID_PATTERN}|{PROBES}{ID_PATTERN}")


@dataclass(frozen=True, slots=True)
class Strays:
    """`files` are keys of files that nobody owns, `documents` the ids of documents whose file is gone; `checked` counts ours."""

    files: tuple[str, ...]
    documents: tuple[str, ...]
    checked: int


async def find(parts: Parts) -> Strays:
    """Compare all rows with all files; servers may be at work meanwhile. Raises `Unavailable`."""
    documents = await _documents(parts)  # before the files: a row's file was there before it
    unseen = dict(documents)
    files: list[str] = []
    checked = 0
    keys = parts.blobs.list()
    while listed := await parts.lanes.blob.run(_next, keys):
        batch = await _ours(parts, listed)
        checked += len(batch)
        strangers = [key for key in batch if unseen.pop(key, None) is None and key not in documents]
        owned = await parts.session.read(blob_service.owned, strangers) if strangers else set()
        files += [key for key in strangers if key not in owned]
    gone = [document_id for key, document_id in unseen.items() if await _is_gone(parts, key)]
    return Strays(tuple(files), tuple(gone), checked)


async def remove(parts: Parts, files: tuple[str, ...]) -> None:
    """Remove files that nobody owns. Raises `Unavailable`."""
    for key in files:
        await parts.lanes.blob.run(parts.blobs.delete, key)


async def _documents(parts: Parts) -> dict[str, str]:
    """Key -> document id, of all tenants."""
    found: dict[str, str] = {}
    after = ""
    while rows := await parts.session.read(blob_service.page, after, ROWS_AT_ONCE):
        found |= {key: document_id for document_id, key in rows}
        after = rows[-1][0]
    return found


async def _ours(parts: Parts, keys: list[str]) -> list[str]:
    owners = {key: found["tenant"] for key in keys if (found := _KEY.fullmatch(key))}
    known = await parts.session.read(blob_service.tenants, {tenant for tenant in owners.values() if tenant})
    return [key for key, tenant in owners.items() if tenant is None or tenant in known]


def _next(keys: Iterator[str]) -> list[str]:
    return list(islice(keys, blob_service.KEYS_AT_ONCE))


async def _is_gone(parts: Parts, key: str) -> bool:
    """Whether the file is still missing and still wanted: its document may have been deleted meanwhile."""
    try:
        file = await parts.lanes.blob.run(parts.blobs.open, key)
    except NotFound:
        return key in await parts.session.read(blob_service.owned, [key])
    file.close()
    return False
