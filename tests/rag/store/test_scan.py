"""rag/store/search.py: the scan of the vectors while other threads delete."""

import numpy as np
import pytest

from rag.store.search import _scan


class Deleting:
    """Allows every row, and empties a slot of the table as soon as it was asked."""

    def __init__(self, table: np.ndarray, slot: int, wanted: int) -> None:
        self._table, self._slot, self._wanted = table, slot, wanted

    def allows(self, rows: np.ndarray) -> np.ndarray:
        self._table[self._slot] = -1
        return rows < self._wanted


@pytest.mark.parametrize("wanted", [200, 3], ids=["whole", "scattered"])
def test_a_chunk_that_goes_while_its_vector_is_scanned_is_left_out(wanted: int) -> None:
    table = np.arange(200, dtype=np.int32)
    vectors = np.ones((200, 4), np.float16)
    rows, scores = _scan(vectors, table, np.ones(4, np.float16), Deleting(table, 1, wanted), -np.inf)  # type: ignore[arg-type]
    assert rows.tolist() == [row for row in range(wanted) if row != 1]
    assert len(scores) == wanted - 1
