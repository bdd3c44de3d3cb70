"""Whether the records of all tenants can be used, cheaply enough to be asked once a second."""

import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rag.store.record_file import FORMAT, reason
from rag.store.tenant import RECORD_NAME

_CHECK_SECONDS = 0.5  # of opening records in one call; what is left is opened by the next calls
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

_Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Failures:
    """The first record that cannot be used, why, and what to do; empty when none is known to be so. `all`: there is no other one."""

    reason: str = ""
    all: bool = False


class RecordCheck:
    """Opens each record once and again when its inode, size or time of change is another; otherwise a call costs a stat a tenant."""

    def __init__(self, folder: Path) -> None:
        """`folder` has a folder a tenant."""
        self._folder = folder
        self._known: dict[str, tuple[_Signature, str]] = {}

    def failures(self) -> Failures:
        """What is known of the records now. Raises `OSError`."""
        until = time.monotonic() + _CHECK_SECONDS
        known: dict[str, tuple[_Signature, str]] = {}
        for tenant_id, signature in self._records():
            before = self._known.get(tenant_id)
            if before is not None and before[0] == signature:
                known[tenant_id] = before
            elif time.monotonic() < until:
                known[tenant_id] = (signature, _damage(self._folder / tenant_id / RECORD_NAME))
        self._known = known
        damaged = [(tenant_id, damage) for tenant_id, (_, damage) in known.items() if damage]
        if not damaged:
            return Failures()
        tenant_id, damage = damaged[0]
        more = f" (so are those of {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        return Failures(
            f"the chunk record of tenant {tenant_id} cannot be used{more}: {damage}; restore {RECORD_NAME} of that tenant from a backup, "
            "or remove its folder and parse its documents again",
            len(damaged) == len(known),
        )

    def _records(self) -> Iterator[tuple[str, _Signature]]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    stat = os.stat(os.path.join(entry.path, RECORD_NAME))
                except (FileNotFoundError, NotADirectoryError):
                    continue  # dropped, or just being made
                yield entry.name, (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _damage(path: Path) -> str:
    """Why the record cannot be read; empty for one that can, or that another connection keeps busy."""
    try:
        # Through SQLite alone: a file closed by hand would release the locks that this process holds on it.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0, isolation_level=None)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as exc:
        busy = getattr(exc, "sqlite_errorcode", 0) & 0xFF in _BUSY
        return "" if busy or not path.exists() else reason(exc)
    return f"it has format {version}, this server reads up to {FORMAT}" if version > FORMAT else ""
