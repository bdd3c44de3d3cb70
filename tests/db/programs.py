"""Programs in processes of their own, let go at the same moment."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def let_go_together(source: str, arguments: Sequence[Sequence[str]]) -> Iterator[list["subprocess.Popen[str]"]]:
    """A process of the program for each list of arguments. Each says "ready", and goes on with a line that it reads when all have."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", source, *words], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for words in arguments
    ]  # fmt: skip
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()
