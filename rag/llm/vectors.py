"""What every embedding model's output has to pass before it is stored or compared."""

import numpy as np

from rag.errors import ProviderBadReply


def unit_rows(vectors: np.ndarray, model: str) -> np.ndarray:
    """The rows scaled to length 1, float32. Raises `ProviderBadReply` for a row that has no direction (zero, NaN, infinite)."""
    rows = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths)) or np.any(lengths == 0.0):
        raise ProviderBadReply(f"model {model} gave a vector that is zero or not finite")
    return (rows / lengths).astype(np.float32)
