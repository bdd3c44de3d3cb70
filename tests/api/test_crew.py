"""The parent of several workers, with workers that only sleep."""

import asyncio
import sys
from pathlib import Path

import pytest

from api.workers import Crew
from rag.settings import Settings

SLEEPS = sys.executable, "-c", "import time; time.sleep(60)"


class _StoppedInAStart(Crew):
    """Told to stop at the moment when the process of a worker is being made."""

    async def _live(self, *arguments: object) -> int:
        asyncio.get_running_loop().call_soon(self._stopping.set)
        return await super()._live(*arguments)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_stop_while_workers_are_being_started_ends_them(tmp_path: Path, count: int) -> None:
    settings = Settings(data_dir=tmp_path, host="127.0.0.1", port=0, drain_seconds=1)
    async with asyncio.timeout(20):
        assert await _StoppedInAStart(settings, count, {}, SLEEPS).run() == 0
