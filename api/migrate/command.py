"""`millrace migrate --to FILE`, `--cancel`, `--forget`."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from api.migrate.move import cancel, forget, move, report
from api.migrate.progress import Progress
from rag.settings import PREFIX, Settings, load


def migrate(settings: Settings, *, to: Path | None, give_up: bool = False, remove: bool = False) -> int:
    """Move the data to the parts that the file `to` names, give the move up, or remove what was moved away. 0 when it is done."""
    progress = Progress(sys.stderr)
    if give_up:
        cancel(settings, progress)
        return 0
    if remove:
        forget(settings, progress)
        return 0
    assert to is not None
    for line in report(move(settings, target_settings(to), progress)):
        progress.say(line)
    progress.say("the data is at its new place; stop the servers and workers of the old settings, and start them with the new ones:")
    print(f"MILLRACE_CONFIG={shlex.quote(str(to.absolute()))} millrace serve")
    return 0


def target_settings(file: Path) -> Settings:
    """The settings in the file alone: the environment's are those of the source. Raises `SettingsError`."""
    environ: Mapping[str, str] = {f"{PREFIX}CONFIG": str(file)}
    return load(environ, file.parent)
