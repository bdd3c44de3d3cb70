"""The command line: `millrace serve`, `worker`, `keys`, `check`, `migrate`, `version`. The only reader of the environment.

What a command runs is imported where it is run: the parent of several workers, which lives as long as they do, needs none of its 100 MB.
"""

import argparse
import asyncio
import os
import sys
import warnings
from collections.abc import Callable, Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from api import logs
from api.workers import Crew
from rag import tracing
from rag.errors import MillraceError, SettingsError
from rag.settings import Settings, load

BAD_SETTINGS = 2
FAILED = 1
ENDED_BY_KEYBOARD = 130
MOST_WORKERS = 256

EPILOG = """\
Settings come from the environment (MILLRACE_PORT=9380) and from millrace.toml in the current directory, or the file that
MILLRACE_CONFIG names; the environment wins. docs/settings.md lists them all; `millrace check` says what is wrong with yours.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code: 0, 1 when it failed, 2 for wrong usage or settings."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    given = _parser().parse_args(arguments)
    try:
        if given.command == "version":
            print(version("millrace"))
            return 0
        settings = load(os.environ, Path.cwd())
        logs.configure(settings.log_level, settings.log_format)
        return given.run(given, settings)
    except SettingsError as error:
        print(f"millrace: {error}", file=sys.stderr)
        return BAD_SETTINGS
    except MillraceError as error:
        print(f"millrace: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return ENDED_BY_KEYBOARD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="millrace",
        description="Upload documents, search them, chat over them with cited answers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve_parser = _command(commands, "serve", "answer HTTP requests, and ingest documents unless MILLRACE_INGEST_WORKERS=0", _serve)
    serve_parser.add_argument("--workers", type=_count, default=1, metavar="N", help="server processes that share the port (default: 1)")
    # how the parent starts one of them
    for name, kind in (("--worker", int), ("--control", int), ("--folder", Path)):
        serve_parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    _command(commands, "worker", "ingest documents only, beside a server on the same data directory", _worker)
    check_parser = _command(commands, "check", "say what is misconfigured and how to mend it; exit code 1 if anything is", _check)
    check_parser.add_argument("--files", action="store_true", help="compare all stored files with all documents, too")
    check_parser.add_argument("--repair", action="store_true", help="as --files, and remove the files that nobody owns")
    migrate_parser = _command(commands, "migrate", "move all data to the parts that other settings name", _migrate)
    what = migrate_parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=Path, metavar="FILE", help="settings file of the target; run it again to go on with what broke off")
    what.add_argument("--cancel", action="store_true", help="give up a move that is not finished, so that writes are served again")
    what.add_argument("--forget", action="store_true", help="remove what was moved away from the parts that the present settings name")
    commands.add_parser("version", help="print the version")
    keys_parser = commands.add_parser("keys", help="list, create and delete API keys")
    keys = keys_parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (("list", "print all keys"), ("create", "make a key and print it"), ("delete", "delete a key")):
        action = _command(keys, name, summary, _keys)
        if name == "delete":
            action.add_argument("key", help="the key, or the start of it that no other key shares")
        else:
            action.add_argument("--tenant", help="name of the tenant (default: the one MILLRACE_DEFAULT_TENANT names)")
    return parser


def _command(commands: Any, name: str, summary: str, run: Callable[[argparse.Namespace, Settings], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"not between 1 and {MOST_WORKERS}")
    return number


def _serve(given: argparse.Namespace, settings: Settings) -> int:
    keys = _model_keys(settings)
    if given.workers > 1:
        return _run(Crew(settings, given.workers, os.environ).run())

    from api.programs import serve_alone, serve_among_others

    if given.worker is not None:
        return _traced(lambda: serve_among_others(settings, keys, given.worker, given.control, given.folder))
    return _traced(lambda: serve_alone(settings, keys))


def _worker(_: argparse.Namespace, settings: Settings) -> int:
    from api.programs import ingest

    if settings.ingest_workers == 0:
        settings = settings.model_copy(update={"ingest_workers": Settings.model_fields["ingest_workers"].default})
    return _traced(lambda: ingest(settings, _model_keys(settings)))


def _check(given: argparse.Namespace, settings: Settings) -> int:
    from api.check import check

    return _run(check(settings, os.environ, files=given.files, repair=given.repair))


def _migrate(given: argparse.Namespace, settings: Settings) -> int:
    from api.migrate.command import migrate

    return migrate(settings, to=given.to, give_up=given.cancel, remove=given.forget)


def _keys(given: argparse.Namespace, settings: Settings) -> int:
    from api.keys import create_key, delete_key, list_keys

    if given.action == "list":
        return list_keys(settings, given.tenant)
    if given.action == "create":
        return create_key(settings, given.tenant or settings.default_tenant)
    return delete_key(settings, given.key)


def _model_keys(settings: Settings) -> dict[str, str]:
    """Environment variable -> key, for the variables that the models name. Raises `SettingsError` for one that is not set."""
    keys = {}
    for model in settings.models:
        if model.api_key_env is None:
            continue
        key = os.environ.get(model.api_key_env, "").strip()
        if not key:
            raise SettingsError(f"model {model.name}@{model.provider}: environment variable {model.api_key_env} is not set")
        keys[model.api_key_env] = key
    return keys


def _traced(command: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run it, with traces where the standard OTEL_* variables ask for them."""
    with tracing.exporting(os.environ, service_version=version("millrace")):
        return _run(command())


def _run(command: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(command)


if __name__ == "__main__":
    sys.exit(main())
