"""rag/settings.py: one declaration, two sources, one clear line for every mistake."""

from pathlib import Path

import pytest

from rag.errors import SettingsError
from rag.settings import load


def test_the_defaults_need_no_environment_and_no_file(tmp_path: Path) -> None:
    settings = load({"HOME": "/nowhere"}, tmp_path)
    assert (settings.host, settings.port) == ("127.0.0.1", 9380)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "millrace.toml").write_text('port = 1000\nhost = "0.0.0.0"\n')
    settings = load({"MILLRACE_PORT": "2000"}, tmp_path)
    assert (settings.host, settings.port) == ("0.0.0.0", 2000)


def test_models_and_aliases_come_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "millrace.toml").write_text(
        '[[models]]\nname = "m"\nprovider = "P"\nkind = "chat"\nbase_url = "http://127.0.0.1:1/v1"\napi_key_env = "P_KEY"\n'
        '[aliases]\nfast = "m@P"\n'
    )
    settings = load({}, tmp_path)
    assert settings.models[0].api_key_env == "P_KEY"
    assert settings.aliases == {"fast": "m@P"}


def test_test_addresses_are_not_settings(tmp_path: Path) -> None:
    load({"MILLRACE_TEST_ELASTICSEARCH": "http://127.0.0.1:9200"}, tmp_path)


@pytest.mark.parametrize(
    ("environ", "file", "line"),
    [
        ({"MILLRACE_PROT": "1"}, "", "unknown setting MILLRACE_PROT"),
        ({"MILLRACE_MODELS": "x"}, "", "unknown setting MILLRACE_MODELS"),
        ({"MILLRACE_PORT": "many"}, "", "setting port (MILLRACE_PORT): input should be a valid integer"),
        ({"MILLRACE_PORT": "70000"}, "", "setting port (MILLRACE_PORT): input should be less than or equal to 65535"),
        ({}, "prot = 1", "unknown setting prot"),
        ({}, "port = ", "is not valid TOML"),
        ({}, '[[models]]\nname = "m"\nprovider = "P"\nkind = "chta"', "setting models.0.kind: input should be"),
        ({}, '[[models]]\nname = "m"\nprovider = "P"\nkind = "chat"\nkey = "secret"', "unknown setting models.0.key"),
        ({"MILLRACE_CONFIG": "/does/not/exist.toml"}, "", "does not exist"),
    ],
)
def test_a_mistake_is_one_clear_line(environ: dict[str, str], file: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "millrace.toml").write_text(file)
    with pytest.raises(SettingsError) as refused:
        load(environ, tmp_path)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"ELASTICSEARCH_HOSTS": "http://es:9200"},
            "setting elasticsearch_hosts is given, but chunks are kept in the data directory: set MILLRACE_STORE=elasticsearch, "
            "or leave MILLRACE_ELASTICSEARCH_HOSTS out",
        ),
        ({"ELASTICSEARCH_USER": "elastic", "STORE": "embedded"}, "set MILLRACE_STORE=elasticsearch"),
        ({"ELASTICSEARCH_API_KEY": "secret-of-ours"}, "set MILLRACE_STORE=elasticsearch"),
        ({"ELASTICSEARCH_CA_FILE": "/etc/ca.pem"}, "set MILLRACE_STORE=elasticsearch"),
        ({"DATABASE_PASSWORD": "secret-of-ours"}, "the database is a file in the data directory: set MILLRACE_DATABASE_URL"),
        ({"BLOB_ENDPOINT": "http://s3:9000"}, "files are kept in the data directory: set MILLRACE_BLOB_URL"),
        ({"BLOB_REGION": "us-east-1", "BLOB_URL": ""}, "files are kept in the data directory: set MILLRACE_BLOB_URL"),
    ],
)
def test_what_belongs_to_a_part_that_is_not_used_stops_the_start(environ: dict[str, str], line: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load({f"MILLRACE_{name}": value for name, value in environ.items()}, tmp_path)
    assert line in str(refused.value)
    assert "secret-of-ours" not in str(refused.value)


def test_what_belongs_to_a_part_may_be_given_with_it_and_may_be_empty_without(tmp_path: Path) -> None:
    (tmp_path / "millrace.toml").write_text('store = "elasticsearch"\ndatabase_url = "postgresql://db/m"\nblob_url = "s3://b/p"\n')
    used = {"ELASTICSEARCH_HOSTS": "http://es:9200", "DATABASE_PASSWORD": "p", "BLOB_ENDPOINT": "http://s3:9000"}
    assert load({f"MILLRACE_{name}": value for name, value in used.items()}, tmp_path).elasticsearch_hosts == "http://es:9200"
    load({"MILLRACE_DATABASE_PASSWORD": "", "MILLRACE_BLOB_REGION": ""}, tmp_path / "nothing")
