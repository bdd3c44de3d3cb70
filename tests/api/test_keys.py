import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.keys import create_key, delete_key, ensure_first_key, list_keys, prepare_data_dir
from db.address import DATABASE_FILE
from db.services import tenant_service
from db.session import Session
from rag.errors import NotFound, SettingsError
from rag.settings import Settings
from rag.threads import Lane


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    lane = Lane("db", 1, 10)
    session = Session(tmp_path / DATABASE_FILE, lane)
    session.create_tables()
    yield session
    session.close()
    lane.close()


def test_the_first_start_writes_a_private_file_with_a_key_that_works(session: Session, tmp_path: Path) -> None:
    token = ensure_first_key(session, tmp_path, "default")
    file = tmp_path / "api_key"
    assert file.read_text() == token + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(token) == len("ragflow-") + 43
    assert session.read_now(tenant_service.find_key, token) is not None


def test_a_later_start_keeps_the_key(session: Session, tmp_path: Path) -> None:
    assert ensure_first_key(session, tmp_path, "default") == ensure_first_key(session, tmp_path, "default")


def test_a_deleted_key_or_file_is_made_again(session: Session, tmp_path: Path) -> None:
    first = ensure_first_key(session, tmp_path, "default")
    tenant = session.write_now(tenant_service.ensure_tenant, "default")
    assert session.write_now(tenant_service.delete_key, tenant.id, first)
    second = ensure_first_key(session, tmp_path, "default")
    assert second != first
    (tmp_path / "api_key").unlink()
    third = ensure_first_key(session, tmp_path, "default")
    assert third != second
    assert session.read_now(tenant_service.find_key, second) is not None


def test_keys_are_listed_created_and_deleted_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(data_dir=tmp_path)
    assert create_key(settings, "default") == 0
    token = capsys.readouterr().out.strip()
    assert create_key(settings, "bob") == 0
    capsys.readouterr()
    assert list_keys(settings, None) == 0
    listed = capsys.readouterr().out
    assert token in listed
    assert "bob" in listed
    assert delete_key(settings, token[:20]) == 0
    assert token not in capsys.readouterr().out
    assert list_keys(settings, "default") == 0
    assert capsys.readouterr().out == ""


def test_a_beginning_that_several_keys_share_deletes_none(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    create_key(settings, "default")
    create_key(settings, "default")
    with pytest.raises(NotFound, match="2 keys start so"):
        delete_key(settings, "ragflow-")
    with pytest.raises(NotFound, match="no key starts so"):
        delete_key(settings, "nonsense")


def test_a_data_directory_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="MILLRACE_DATA_DIR"):
        prepare_data_dir(tmp_path / "file" / "data")
