"""What `millrace migrate` does with one installation: move its data, give a move up, forget what was moved away."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from api.migrate.checks import wipe
from api.migrate.mover import Moved, Mover
from api.migrate.progress import Progress
from api.migrate.side import Side
from db.services import move_service
from rag.errors import Conflict, MillraceError
from rag.settings import Settings

LOCK_FILE = "migrate.lock"


@contextmanager
def alone(data_dir: Path) -> Iterator[None]:
    """Raises `Conflict` where another process of this machine moves the data of this directory."""
    with (data_dir / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict("another millrace migrate is at work on this data directory") from None
        yield


def move(source: Settings, target: Settings, progress: Progress) -> Moved:
    """Move the data of one settings' parts to those of others."""
    with ExitStack() as stack:
        from_side, to_side = Side(source, "the source", stack), Side(target, "the target", stack)
        stack.enter_context(alone(from_side.data_dir))
        mover = Mover(from_side, to_side, progress)
        try:
            return mover.run()
        except MillraceError as error:
            if not mover.holding:
                raise
            raise MillraceError(f"{error}; writes stay held: run the same command again to go on, or millrace migrate --cancel") from error


def cancel(settings: Settings, progress: Progress) -> None:
    """Give a move up that has not been switched: writes are served again. The target keeps what it has; a new move removes it."""
    with ExitStack() as stack:
        side = Side(settings, "the source", stack)
        stack.enter_context(alone(side.data_dir))
        side.prepare_database()
        state = side.state
        if state.state != "held":
            raise Conflict("no move is under way here that could be cancelled")
        abandoned = set(state.detail["to"]) - set(state.detail["from"]) | set(state.detail.get("abandoned", ()))
        side.write(move_service.put, "open", "", {"abandoned": sorted(abandoned)})
        progress.say("the move is cancelled: writes are served again")


def forget(settings: Settings, progress: Progress) -> None:
    """Remove what was moved away from the parts that these settings name."""
    with ExitStack() as stack:
        side = Side(settings, "the source", stack)
        stack.enter_context(alone(side.data_dir))
        side.prepare_database()
        state, parts = side.state, ()
        if state.state == "moved":
            parts = tuple(name for name in state.detail["parts"] if getattr(side.places, name) in state.detail["from"])
        elif state.state == "open":
            parts = tuple(name for name in ("chunks", "files") if getattr(side.places, name) in state.retired)
        if not parts:
            raise Conflict("nothing was moved away from the places that these settings name")
        wipe(side, parts, side.tenants())
        progress.say(f"removed what was moved away: {', '.join(parts)}")


def report(moved: Moved) -> Iterator[str]:
    """What is said at the end, but for how to go on."""
    counts = {"database": f"{moved.rows:,} rows", "chunks": f"{moved.chunks:,} chunks", "files": f"{moved.files:,} files"}
    yield f"moved and compared: {', '.join(counts[name] for name in moved.parts)}" + (f" (digest {moved.digest})" if moved.chunks else "")
    if moved.lost:
        yield f"{len(moved.lost)} documents had no sound file before the move, and have none now: {', '.join(moved.lost[:20])}"
