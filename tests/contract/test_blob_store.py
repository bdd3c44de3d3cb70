"""What every blob store must do."""

import io
import tracemalloc
from pathlib import Path

import pytest

from rag.errors import InvalidArgument, NotFound, Unavailable
from rag.store.blobs import LocalBlobStore


@pytest.fixture(params=["local"])
def blobs(request, tmp_path: Path):
    return {"local": lambda: LocalBlobStore(tmp_path / "blobs")}[request.param]()


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
    tracemalloc.start()
    try:
        assert blobs.put("big", Endless(64 << 20)) == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_put_that_breaks_off_leaves_what_was_there(blobs):
    blobs.put("a", io.BytesIO(b"before"))
    with pytest.raises((ConnectionResetError, Exception)):
        blobs.put("a", Breaking(8_000_000))
    with blobs.open("a") as file:
        assert file.read() == b"before"


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
    for pieces in ((), (b"half",)):
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
