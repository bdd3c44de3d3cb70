"""API keys on the command line, and the first one: made at the first start and written to `<data>/api_key`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from api.listening import KEY_FILE, reason_of
from api.places import places_of
from db.address import address_of
from db.services import move_service, tenant_service
from db.services.tenant_service import KeyRecord
from db.session import Session
from rag.errors import NotFound, SettingsError
from rag.settings import Settings
from rag.threads import Lane

NO_DIRECTORY = "cannot write to the data directory {path}: {reason}; make it writable or set MILLRACE_DATA_DIR"
SHOWN_CHARACTERS = 16


def prepare_data_dir(data_dir: Path) -> Path:
    """The data directory as an absolute path, made if there is none, readable by this user alone. Raises `SettingsError`."""
    path = data_dir.absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(NO_DIRECTORY.format(path=path, reason=reason_of(error))) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise SettingsError(NO_DIRECTORY.format(path=path, reason="permission denied"))
    return path


def open_session(settings: Settings, lane: Lane) -> Session:
    """A session over the database that the settings name; it connects when it is asked something. Raises `SettingsError`."""
    address = address_of(settings.database_url, prepare_data_dir(settings.data_dir), settings.database_password)
    guard = partial(move_service.check_writable, places_of(settings).movable)
    return Session(address, lane, timeout_seconds=settings.database_timeout_seconds, guard=guard)


def ensure_first_key(session: Session, data_dir: Path, tenant_name: str) -> str:
    """The default tenant's key that `<data>/api_key` holds; made and written there when there is none. Blocking.

    The file is made again when it was deleted or when its key was; other keys are left alone.
    """
    # known already: then nothing is written, which may be held
    return session.read_now(_known_key, data_dir / KEY_FILE) or session.write_now(_first_key, data_dir / KEY_FILE, tenant_name)


def list_keys(settings: Settings, tenant_name: str | None) -> int:
    """Print every key of the tenant, or of all tenants."""
    with _opened(settings) as session:
        tenants = [tenant for tenant in session.read_now(tenant_service.list_tenants) if tenant_name in (None, tenant.name)]
        if tenant_name is not None and not tenants:
            raise NotFound(f"there is no tenant {tenant_name}")
        for tenant in tenants:
            for key in session.read_now(tenant_service.list_keys, tenant.id):
                made = datetime.fromtimestamp(key.create_time / 1000, UTC)
                print(f"{key.token}  {made:%Y-%m-%d %H:%M}  {tenant.name}")
    return 0


def create_key(settings: Settings, tenant_name: str) -> int:
    """Make a key for the tenant, and the tenant if there is none; print the key."""
    with _opened(settings) as session:
        print(session.write_now(_tenant_and_key, tenant_name).token)
    return 0


def delete_key(settings: Settings, start: str) -> int:
    """Delete the one key that starts with `start`. Raises `NotFound` where none or several do."""
    with _opened(settings) as session:
        tenants = session.read_now(tenant_service.list_tenants)
        keys = [key for tenant in tenants for key in session.read_now(tenant_service.list_keys, tenant.id)]
        found = [key for key in keys if key.token.startswith(start)]
        if len(found) != 1:
            raise NotFound("no key starts so" if not found else f"{len(found)} keys start so; give more of it")
        session.write_now(tenant_service.delete_key, found[0].tenant_id, found[0].token)
        print(f"deleted {found[0].token[:SHOWN_CHARACTERS]}…; servers that run notice within seconds")
    return 0


@contextmanager
def _opened(settings: Settings) -> Iterator[Session]:
    lane = Lane("db", threads=1, queue_limit=1)
    session = open_session(settings, lane)
    try:
        session.create_tables()
        yield session
    finally:
        session.close()
        lane.close()


def _known_key(file: Path) -> str:
    """The key in the file, "" without one that is valid."""
    with suppress(FileNotFoundError):
        token = file.read_text("ascii", errors="replace").strip()
        if tenant_service.find_key(token) is not None:
            return token
    return ""


def _first_key(file: Path, tenant_name: str) -> str:
    # the tenant is held, so that two servers that start at once agree on one key
    tenant = tenant_service.hold(tenant_name)
    if known := _known_key(file):
        return known
    token = tenant_service.create_key(tenant.id).token
    _publish(token, file)
    return token


def _tenant_and_key(tenant_name: str) -> KeyRecord:
    return tenant_service.create_key(tenant_service.ensure_tenant(tenant_name).id)


def _publish(token: str, file: Path) -> None:
    """Write the key file, whole and private from its first moment on. Raises `SettingsError` where that cannot be done."""
    draft = file.with_name(f".{KEY_FILE}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            out.write(token + "\n")
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SettingsError(NO_DIRECTORY.format(path=file.parent, reason=reason_of(error))) from None
