"""What is particular to blobs in a local folder."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rag.errors import Damaged
from rag.store.blobs import LocalBlobStore

KILLED_IN_THE_MIDDLE = """
import os, sys
from pathlib import Path
import pytest

from rag.errors import Damaged
from rag.store.blobs import LocalBlobStore

class Source:
    pieces = [b"half"]
    def read(self, size):
        return self.pieces.pop() if self.pieces else os._exit(9)

LocalBlobStore(Path(sys.argv[1])).put("tenant/ab/document", Source())
"""


def test_what_a_killed_put_left_goes_with_its_key(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(tmp_path)], cwd=Path(__file__).parents[3])
    assert done.returncode == 9
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) == 1, "the kill came in the middle"
    store = LocalBlobStore(tmp_path)
    store.delete("tenant/ab/document2")
    assert left[0].exists(), "another key's leavings stay"
    store.delete("tenant/ab/document")
    assert not left[0].exists()


def test_a_changed_byte_is_noticed_before_the_last_one_is_given_out(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    store.put("a", io.BytesIO(bytes(3 << 20)))
    with (tmp_path / "a").open("r+b") as file:
        file.seek(77)
        file.write(b"!")
    seen: list[bytes] = []
    with pytest.raises(Damaged), store.open("a") as reader:
        seen.extend(iter(lambda: reader.read(1 << 20), b""))
    assert sum(map(len, seen)) < 3 << 20
    with pytest.raises(Damaged), store.local_path("a"):
        pass


def test_a_copy_that_lost_its_checksum_is_read(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    store.put("a", io.BytesIO(b"bytes"))
    os.removexattr(tmp_path / "a", "user.millrace.xxh128")
    with store.open("a") as reader:
        assert reader.read() == b"bytes"


def test_what_a_killed_put_left_is_listed(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    writer = store.writer("tenant/ab/document")
    writer.write(b"half")
    assert list(store.list()) == ["tenant/ab/document"]
    writer.abort()
    assert list(store.list()) == []
