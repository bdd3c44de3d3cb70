"""Which chunk store the settings choose."""

from pathlib import Path

import pytest

from api.parts import open_store
from rag.errors import SettingsError
from rag.settings import Settings
from rag.store.elastic_store import ElasticStore
from rag.store.embedded import EmbeddedStore


def test_chunks_are_kept_in_the_data_directory_by_default(tmp_path: Path) -> None:
    store = open_store(Settings(), tmp_path)
    assert isinstance(store, EmbeddedStore)
    store.close()


def test_elasticsearch_is_chosen_by_setting_and_asked_for_nothing_yet(tmp_path: Path) -> None:
    store = open_store(Settings(store="elasticsearch", elasticsearch_hosts="http://127.0.0.1:1, http://127.0.0.1:2"), tmp_path)
    assert isinstance(store, ElasticStore)
    assert store.health()["status"] == "red"
    store.close()


def test_a_secret_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the secret in"):
        open_store(Settings(store="elasticsearch", elasticsearch_api_key_file=tmp_path / "none"), tmp_path)


def test_secrets_are_not_shown() -> None:
    settings = Settings(store="elasticsearch", elasticsearch_api_key="hush-key", elasticsearch_password="hush-word")
    assert "hush" not in repr(settings)
