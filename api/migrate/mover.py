"""Moves an installation's data to other parts: copied, compared, then switched by one durable mark.

The marks lie in the databases (`db.services.move_service`), so that they hold for every server and worker, and so that a move
that was killed is gone on with:

    source open                                   nothing has begun, or a move was cancelled
    target filling                                nobody serves what is not complete
    source held      writes are refused; copying, comparing
    source moved     the switch: from here on the target is right (with a shared database: the old places are retired)
    target open      it may be served

While writes are held nothing changes that was acknowledged. What was under way when they began to be held, and was not, is waited
for, or found by the comparison.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.keys import KEY_FILE
from api.migrate import chunks, files
from api.migrate.checks import check_empty, check_models, wipe
from api.migrate.progress import Progress
from api.migrate.side import Side
from db import transfer
from db.migrate import STEPS
from db.models import new_id
from db.services import move_service
from db.services.task_service import LATE_WRITES_MS
from rag.errors import Conflict, SettingsError

SAVE_SECONDS = 2.0  # between two marks of how far a copy is
STAGES = ("chunks", "files", "compare chunks", "compare files", "done")


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved, by the comparison of both sides. `lost` are documents whose file the source does not have any more."""

    parts: tuple[str, ...]
    rows: int
    chunks: int
    files: int
    lost: tuple[str, ...]
    digest: str


class Mover:
    """One move, from its checks to its switch. `run` may be called by one process after another until it returns."""

    def __init__(
        self, source: Side, target: Side, progress: Progress, *, sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._source, self._target, self._progress = source, target, progress
        self._sleep, self._clock = sleep, clock
        self._parts = source.places.differing(target.places)
        self._detail: dict[str, Any] = {}
        self._move_id = ""
        self._saved = 0.0
        self.holding = False  # writes of the source, by this move

    @property
    def _from(self) -> list[str]:
        return self._source.places.all

    @property
    def _to(self) -> list[str]:
        return self._target.places.all

    def run(self) -> Moved:
        """Move everything that differs. Raises `MillraceError`; what was held stays held then, until it is run again or cancelled."""
        if not self._parts:
            raise SettingsError("the target's settings name the same places as the present ones: there is nothing to move")
        self._source.prepare_database()
        state = self._source.state
        if state.state == "moved" and state.detail.get("to") == self._to:
            self._move_id, self._detail = state.move_id, dict(state.detail)
            self._open_target()  # it was killed between its two marks, or is asked again
            return self._moved()
        if state.state in ("moved", "filling"):
            raise Conflict(f"this is not where the data is: the database is marked {state.state} (docs/operations/migrate.md)")
        if state.state == "held":
            self._go_on(state)
        else:
            self._begin(state)
        self._wait_for_workers()
        rows = self._move_tables()
        self._move_chunks()
        self._move_files()
        contents = self._compare_chunks()
        same, lost = self._compare_files()
        self._detail["moved"] = [rows, contents.chunks, same, lost, f"{contents.digest:032x}"]
        self._switch()
        return self._moved()

    # ------------------------------------------------------------------------------------------------ beginning
    def _go_on(self, state: move_service.MoveState) -> None:
        if state.detail.get("to") != self._to:
            raise Conflict(f"a move to {', '.join(state.detail['kinds'])} is under way: finish it, or millrace migrate --cancel")
        self._move_id, self._detail = state.move_id, dict(state.detail)
        if "database" in self._parts:
            self._target.prepare_database()
            theirs = self._target.state
            if (theirs.state, theirs.move_id) != ("filling", self._move_id):
                raise Conflict("the target's database is not the one that was being filled: millrace migrate --cancel, then begin anew")
        self.holding = True
        self._progress.say("a move that was broken off goes on")
        if "database" in self._parts and self._detail.get("schema") != len(STEPS):
            # each database was brought to the present schema by itself: rows that a step made have other ids on either side
            self._progress.say("it began under another schema: the tables are copied anew")
            self._target.tables.clear()
            self._detail["schema"] = len(STEPS)
            self._save("held")

    def _begin(self, state: move_service.MoveState) -> None:
        if {self._source.places.chunks, self._source.places.files}.intersection(state.retired):
            raise Conflict("this is not where the data is: it was moved away from these places")
        self._target.check_health(self._parts)
        check_models(self._source, self._target)
        abandoned = set(state.detail.get("abandoned", ()))
        leftovers = {name for name in self._parts if name != "database" and getattr(self._target.places, name) in abandoned}
        tables = self._target.look_at_database() if "database" in self._parts else "none"
        if tables == "foreign":
            raise Conflict("the target's database is not empty: it holds tables of something else; nothing was moved")
        if tables == "ours":
            self._target.prepare_database()
            theirs = self._target.state
            if theirs.state == "filling" and theirs.detail.get("from") != self._from:
                raise Conflict("the target's database is being filled from elsewhere")
            if theirs.state == "filling":
                leftovers = set(self._parts)  # an unfinished move of ours filled it: nobody has ever used what is there
        if leftovers:
            self._progress.say("what an unfinished move left in the target is removed")
            owners = [*self._source.tenants(), *(self._target.tenants() if "database" in leftovers else ())]
            wipe(self._target, tuple(sorted(leftovers)), dict.fromkeys(owners))
        check_empty(self._source, self._target, tuple(part for part in self._parts if part != "database" or tables == "ours"))
        if tables == "none" and "database" in self._parts:
            self._target.prepare_database()
        self._move_id = new_id()
        kinds = [self._target.kinds[name] for name in self._parts]
        self._detail = {
            "to": self._to, "from": self._from, "parts": list(self._parts), "kinds": kinds,
            "schema": len(STEPS), "stage": STAGES[0], "tenant": "", "after": "",
        }  # fmt: skip
        if "database" in self._parts:
            self._target.write(move_service.put, "filling", self._move_id, {"from": self._from})
        self._save("held")
        self._progress.say(f"writes are held from now on, reads are served: moving {', '.join(self._parts)} to {', '.join(kinds)}")

    def _wait_for_workers(self) -> None:
        """Until no worker can be at a task that it has lost since: those are done again in the target."""
        milliseconds = self._source.read(move_service.leased_until_ms) + LATE_WRITES_MS - self._source.read(move_service.clock_ms)
        if milliseconds > 0:
            self._progress.say(f"waiting {milliseconds / 1000:.0f} s for documents that are being parsed; they are parsed after the move")
            self._sleep(milliseconds / 1000)

    # ------------------------------------------------------------------------------------------------ copying
    def _move_tables(self) -> int:
        if "database" not in self._parts:
            return 0
        source, target = self._source.tables, self._target.tables
        total = sum(source.count(model) for model in transfer.TABLES)
        self._progress.begin("database", "rows", total, sum(target.count(model) for model in transfer.TABLES))
        for model in transfer.TABLES:
            transfer.copy(source, target, model, self._progress.add)
        self._progress.end()
        self._progress.begin("database, compared", "rows", total)
        rows = 0
        for model in transfer.TABLES:
            contents = source.contents(model, self._progress.add)
            transfer.check(contents, target.contents(model), model)
            rows += contents.rows
        self._progress.end()
        return rows

    def _move_chunks(self) -> None:
        if "chunks" not in self._parts or self._detail["stage"] != "chunks":
            return
        self._progress.begin("chunks", "chunks", self._source.read(move_service.chunk_count), self._detail.get("chunks", 0))
        for tenant_id in self._tenants():
            after = self._detail["after"] if tenant_id == self._detail["tenant"] else ""

            def copied(chunk_id: str, count: int, tenant_id: str = tenant_id) -> None:
                self._progress.add(count)
                self._mark(tenant=tenant_id, after=chunk_id, chunks=self._detail.get("chunks", 0) + count)

            chunks.copy(self._source.store, self._target.store, tenant_id, after, copied)
        self._progress.end()
        self._next_stage("files")

    def _move_files(self) -> None:
        if "files" not in self._parts or STAGES.index(self._detail["stage"]) > STAGES.index("files"):
            return
        self._progress.begin("files", "files", self._source.read(move_service.document_count), self._detail.get("files", 0))

        def copied(document_id: str) -> None:
            self._progress.add(1)
            self._mark(after=document_id, files=self._detail.get("files", 0) + 1)

        after = self._detail["after"] if self._detail["stage"] == "files" else ""
        files.copy(self._source.blobs, self._target.blobs, self._source.documents(after), copied)
        self._progress.end()
        self._next_stage("compare chunks")

    # ------------------------------------------------------------------------------------------------ comparing
    def _compare_chunks(self) -> chunks.Contents:
        contents = chunks.Contents()
        if "chunks" not in self._parts:
            return contents
        self._progress.begin("chunks, compared", "chunks", self._source.read(move_service.chunk_count))
        for tenant_id in self._source.tenants():
            contents += chunks.compare(self._source.store, self._target.store, tenant_id, self._progress.add)
        self._progress.end()
        return contents

    def _compare_files(self) -> tuple[int, list[str]]:
        if "files" not in self._parts:
            return 0, []
        self._progress.begin("files, compared", "files", self._source.read(move_service.document_count))
        found = files.compare(self._source.blobs, self._target.blobs, self._source.documents(), lambda: self._progress.add(1))
        self._progress.end()
        return found

    # ------------------------------------------------------------------------------------------------ switching
    def _switch(self) -> None:
        """From the first of these marks on the target is right."""
        if "database" not in self._parts:
            self._source.write(move_service.put, "open", "", {"kinds": self._detail["kinds"]}, self._retired())
            self.holding = False
            return
        self._save("moved")
        self.holding = False
        self._open_target()

    def _open_target(self) -> None:
        theirs = self._target.state
        if theirs.state == "filling" and theirs.move_id == self._move_id:
            self._target.write(move_service.put, "open", "", {}, self._retired())

    def _retired(self) -> list[str]:
        """Places that nobody may write to who uses the database that is right now."""
        mine, theirs = self._source.places, self._target.places
        left = {getattr(mine, name) for name in self._parts if name != "database"}
        return sorted((set(self._source.state.retired) | left) - {theirs.chunks, theirs.files})

    def _moved(self) -> Moved:
        rows, count, same, lost, digest = self._detail.get("moved", (0, 0, 0, [], ""))
        _bring_key_file(self._source.data_dir, self._target.data_dir)
        return Moved(self._parts, rows, count, same, tuple(lost), digest)

    # ------------------------------------------------------------------------------------------------ marks
    def _tenants(self) -> Iterator[str]:
        """Those that are not done: the one that a copy broke off in is the first."""
        tenant_id = self._detail["tenant"]
        if tenant_id:
            yield tenant_id
        yield from self._source.tenants(tenant_id)

    def _mark(self, **where: Any) -> None:
        """Remember how far the copy is, durably every few seconds: what is copied again after a kill does no harm."""
        self._detail |= where
        if self._clock() - self._saved >= SAVE_SECONDS:
            self._save("held")

    def _next_stage(self, stage: str) -> None:
        self._detail |= {"stage": stage, "tenant": "", "after": ""}
        self._save("held")

    def _save(self, state: str) -> None:
        self.holding = self.holding or state == "held"
        self._source.write(move_service.put, state, self._move_id, self._detail)
        self._saved = self._clock()


def _bring_key_file(source: Path, target: Path) -> None:
    """The file with the first key goes along, so that the target's first start does not make another key."""
    if (source / KEY_FILE).exists() and not (target / KEY_FILE).exists():
        shutil.copy2(source / KEY_FILE, target / KEY_FILE)
