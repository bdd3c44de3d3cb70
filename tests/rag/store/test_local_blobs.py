"""What is particular to blobs in a local folder."""

import subprocess
import sys
from pathlib import Path

from rag.store.blobs import LocalBlobStore

KILLED_IN_THE_MIDDLE = """
import os, sys
from pathlib import Path
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
