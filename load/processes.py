"""What a process and all below it take: CPU and memory, read from /proc."""

import contextlib
import os
import resource
import threading
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `resident` counts shared pages in each process, `proportional` (PSS) once in all, `private` those of no other process."""

    resident: int = 0
    proportional: int = 0
    private: int = 0

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.resident + other.resident, self.proportional + other.proportional, self.private + other.private)


def family(process_id: int) -> list[int]:
    """The process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [process_id]
    for parent in found:
        found += parents.get(parent, ())
    return found


def memory_of(process_id: int) -> Memory:
    """Of one process; zeros for one that is gone."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()[1:]
        sizes = {name: int(value.split()[0]) << 10 for name, _, value in (line.partition(":") for line in lines)}
        return Memory(sizes.get("Rss", 0), sizes.get("Pss", 0), sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0))
    return Memory()


def family_memory(process_id: int) -> Memory:
    """Of the process and all below it."""
    return sum((memory_of(each) for each in family(process_id)), Memory())


def cpu_seconds(process_id: int) -> float:
    """User and system time of one process, all its threads, since it began."""
    return sum(_cpu_ticks(process_id)[:2]) / TICKS


def family_cpu_seconds(process_id: int) -> float:
    """Of the process and all that have ever been below it: those that live, and those that ended and were waited for."""
    ticks = sum(_cpu_ticks(process_id))
    for each in family(process_id)[1:]:
        with contextlib.suppress(OSError):  # it has just ended
            ticks += sum(_cpu_ticks(each))
    return ticks / TICKS


def _cpu_ticks(process_id: int) -> list[int]:
    """User and system time of the process, then of its children that ended, as they of theirs."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return [int(ticks) for ticks in fields[11:15]]


def allow_many_files() -> None:
    """As many open files, and so connections, as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class MemorySampler:
    """Samples the memory of a process and all below it, on a thread, while the block runs; keeps the highest of each figure."""

    def __init__(self, process_id: int) -> None:
        self.peak = Memory()
        self._process_id = process_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            now, peak = family_memory(self._process_id), self.peak
            self.peak = Memory(
                max(now.resident, peak.resident), max(now.proportional, peak.proportional), max(now.private, peak.private)
            )  # fmt: skip
