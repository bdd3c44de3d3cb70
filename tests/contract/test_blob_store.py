"""What every blob store must do."""

import io
import resource
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag.errors import InvalidArgument, NotFound, Unavailable
from rag.ports import BlobStore
from rag.store.blobs import LocalBlobStore
from rag.store.blobs_s3 import S3BlobStore
from tests.services.missing import missing
from tests.services.s3 import BUCKET, MISSING, REGION, is_installed, s3

LARGE_BYTES = 64 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory):
    if not is_installed():
        missing(MISSING)
    with s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["local", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "local":
        yield LocalBlobStore(tmp_path / "blobs")
        return
    running = request.getfixturevalue("service")
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}/files"
    store = S3BlobStore(url, tmp_path / "scratch", endpoint=running.endpoint, region=REGION, keys=running.keys)
    yield store
    store.close()
    assert not running.parts, "every upload was completed or taken back"


class Endless(io.RawIOBase):
    """A stream of so many zero bytes that are never all in memory."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece = bytes(min(self.left, size if size >= 0 else self.left))
        self.left -= len(piece)
        return piece


class Breaking(Endless):
    """A stream that fails halfway, as an upload does when the client leaves."""

    def read(self, size: int = -1) -> bytes:
        if self.left < 2_000_000:
            raise ConnectionResetError("gone")
        return super().read(size)


def test_what_was_put_is_read_back(blobs):
    assert blobs.put("tenant/doc_1", io.BytesIO(b"hello")) == 5
    with blobs.open("tenant/doc_1") as file:
        assert file.read() == b"hello"


def test_put_replaces(blobs):
    blobs.put("a", io.BytesIO(b"first and longer"))
    blobs.put("a", io.BytesIO(b"second"))
    with blobs.open("a") as file:
        assert file.read() == b"second"


def test_an_empty_blob_is_a_blob(blobs):
    assert blobs.put("a", io.BytesIO(b"")) == 0
    with blobs.open("a") as file:
        assert file.read() == b""


def test_a_large_blob_passes_in_bounded_memory(blobs):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        assert blobs.put("big", Endless(4 * LARGE_BYTES)) == 4 * LARGE_BYTES
        with blobs.open("big") as file:
            assert sum(len(piece) for piece in iter(lambda: file.read(1 << 20), b"")) == 4 * LARGE_BYTES
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    # what libraries allocate beside Python
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120 << 10


@pytest.mark.parametrize("size", [8_000_000, LARGE_BYTES])
def test_a_put_that_breaks_off_leaves_what_was_there(blobs, size: int):
    blobs.put("a", io.BytesIO(b"before"))
    with pytest.raises(ConnectionResetError):
        blobs.put("a", Breaking(size))
    with blobs.open("a") as file:
        assert file.read() == b"before"


@pytest.mark.parametrize("size", [1, 31, 4 << 20, (4 << 20) - 16, (4 << 20) - 32, (4 << 20) + 1, (8 << 20) - 1, 8 << 20, (20 << 20) + 5])
def test_every_byte_comes_back_whatever_the_size(blobs, size: int):
    content = (b"0123456789abcdef!" * (size // 17 + 1))[:size]
    assert blobs.put("a", io.BytesIO(content)) == size
    with blobs.open("a") as file:
        assert file.read() == content
    with blobs.local_path("a") as path:
        assert path.read_bytes() == content


def test_the_keys_are_listed(blobs):
    assert list(blobs.list()) == []
    for key in ("a/b/c", "a/d", "e"):
        blobs.put(key, io.BytesIO(b"1"))
    assert sorted(blobs.list()) == ["a/b/c", "a/d", "e"]


def test_a_blob_that_comes_in_pieces_is_there_when_it_is_committed(blobs):
    writer = blobs.writer("a/b")
    writer.write(b"one, ")
    writer.write(b"two")
    with pytest.raises(NotFound):
        blobs.open("a/b")
    assert writer.commit() == 8
    writer.abort()
    with blobs.open("a/b") as file:
        assert file.read() == b"one, two"


def test_an_aborted_blob_leaves_what_was_there_and_takes_no_more(blobs):
    blobs.put("a", io.BytesIO(b"before"))
    for pieces in ((), (b"half",), [bytes(1 << 20)] * 20):
        writer = blobs.writer("a")
        for piece in pieces:
            writer.write(piece)
        writer.abort()
        writer.abort()
        with pytest.raises(Unavailable):
            writer.write(b"more")
        with pytest.raises(Unavailable):
            writer.commit()
    with blobs.open("a") as file:
        assert file.read() == b"before"


def test_local_path_is_a_file_with_the_bytes(blobs):
    blobs.put("x/y/z", io.BytesIO(b"bytes"))
    with blobs.local_path("x/y/z") as path:
        assert path.read_bytes() == b"bytes"


def test_an_unknown_key_is_not_found(blobs):
    with pytest.raises(NotFound):
        blobs.open("nothing")
    with pytest.raises(NotFound), blobs.local_path("nothing"):
        pass


def test_deleting_is_idempotent(blobs):
    blobs.put("a", io.BytesIO(b"1"))
    blobs.delete("a")
    blobs.delete("a")
    with pytest.raises(NotFound):
        blobs.open("a")


@pytest.mark.parametrize("key", ["", "../escape", "/etc/passwd", "a//b", "A", "a b", "a/../b", "ü"])
def test_a_key_that_we_would_not_make_is_refused(blobs, key: str):
    with pytest.raises(InvalidArgument):
        blobs.put(key, io.BytesIO(b"1"))


def test_health_is_green(blobs):
    assert blobs.health()["status"] == "green"
