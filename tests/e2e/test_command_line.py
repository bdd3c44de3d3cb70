"""The program as a person at a shell meets it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.e2e.flows import ok, upload
from tests.e2e.server_process import MODEL_CACHE, ROOT
from tests.services import s3
from tests.services.missing import missing


def millrace(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    return subprocess.run(
        [sys.executable, "-m", "api", *arguments],
        cwd=cwd,
        env=inherited | {"PYTHONPATH": str(ROOT), "MILLRACE_CACHE_DIR": str(MODEL_CACHE)} | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"MILLRACE_PORTT": "1"}, "unknown setting MILLRACE_PORTT"),
        ({"MILLRACE_PORT": "many"}, "setting port (MILLRACE_PORT): input should be a valid integer"),
        ({"MILLRACE_PORT": "70000"}, "setting port (MILLRACE_PORT): input should be less than or equal to 65535"),
        ({"MILLRACE_HOST": "no.such.host.invalid"}, "cannot listen on no.such.host.invalid:"),
        ({"MILLRACE_CONFIG": "/no/such/file.toml"}, "the settings file /no/such/file.toml does not exist"),
        ({"MILLRACE_DATA_DIR": "/dev/null/data"}, "cannot write to the data directory /dev/null/data"),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_line(environ: dict[str, str], said: str, tmp_path: Path) -> None:
    done = millrace("serve", **({"MILLRACE_DATA_DIR": str(tmp_path / "data")} | environ))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"millrace: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("port = \n", "is not valid TOML"),
        ("colour = 'red'\n", "unknown setting colour"),
        ("[[models]]\nname = 'm'\nprovider = 'p'\nkind = 'chat'\n", "model m@p"),
        ("[[models]]\nname = 'm'\nprovider = 'p'\nkind = 'poet'\n", "models.0.kind"),
        (
            "[[models]]\nname = 'm'\nprovider = 'p'\nkind = 'chat'\nbase_url = 'http://127.0.0.1:1'\napi_key_env = 'NOT_SET'\n",
            "model m@p: environment variable NOT_SET is not set",
        ),
        ("[aliases]\nbest = 'gone@nowhere'\n", "alias best: no model gone@nowhere is configured"),
    ],
)
def test_a_bad_settings_file_stops_the_start_with_one_line(file: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "millrace.toml").write_text(file)
    done = millrace("serve", cwd=tmp_path, MILLRACE_DATA_DIR=str(tmp_path / "data"), MILLRACE_PORT="0")
    assert done.returncode == 2, done
    assert done.stderr.startswith("millrace: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_version_is_the_packages() -> None:
    assert millrace("version").stdout == version("millrace") + "\n"


def test_wrong_usage_is_exit_code_2_and_says_what_there_is() -> None:
    done = millrace("sevre")
    assert done.returncode == 2
    for command in ("serve", "worker", "keys", "check", "version"):
        assert command in done.stderr


def test_check_finds_nothing_to_mend_where_all_is_well(tmp_path: Path) -> None:
    done = millrace("check", MILLRACE_DATA_DIR=str(tmp_path / "data"), MILLRACE_PORT="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MEND" not in done.stdout
    assert "embedding model all-MiniLM-L6-v2@Local: answers" in done.stdout


def test_check_names_every_fault_and_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "millrace.toml").write_text(
        "[[models]]\nname = 'm'\nprovider = 'p'\nkind = 'chat'\nbase_url = 'http://127.0.0.1:9'\napi_key_env = 'SOME_KEY'\n"
    )
    done = millrace("check", cwd=tmp_path, MILLRACE_DATA_DIR=str(tmp_path / "data"), MILLRACE_HOST="192.0.2.1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "MEND  192.0.2.1:9380: cannot listen" in done.stdout
    assert "MEND  variable SOME_KEY: not set" in done.stdout
    assert "export SOME_KEY=" in done.stdout
    assert "MEND  chat model m@p: the connection to model" in done.stdout


def test_keys_made_by_command_work_at_once_and_deleted_ones_soon_do_not(start, tmp_path: Path) -> None:
    server = start(ready=False)
    data = {"MILLRACE_DATA_DIR": str(server.data_dir)}
    token = millrace("keys", "create", **data).stdout.strip()
    assert server.get("/api/v1/system/tokens", Authorization=f"Bearer {token}")[0] == 200
    assert token in millrace("keys", "list", **data).stdout
    assert millrace("keys", "delete", server.api_key[:20], **data).returncode == 0
    # never used so far, so not remembered by the running server
    assert server.get("/api/v1/system/tokens", Authorization=f"Bearer {server.api_key}")[0] == 401


def test_a_key_of_no_one_is_refused_by_name(tmp_path: Path) -> None:
    done = millrace("keys", "delete", "ragflow-nobody", MILLRACE_DATA_DIR=str(tmp_path / "data"))
    assert (done.returncode, done.stderr) == (1, "millrace: no key starts so\n")


@pytest.fixture(params=["folder", "s3"])
def files_kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """What a process needs to keep files there, and the folder that they lie in then."""
    if request.param == "folder":
        yield {}, tmp_path / "data" / "blobs"
        return
    if not s3.is_installed():
        missing(s3.MISSING)
    with s3.s3(tmp_path) as bucket:
        yield {**bucket.environ, "MILLRACE_BLOB_URL": f"s3://{s3.BUCKET}/ours"}, bucket.folder / s3.BUCKET / "ours"


def test_check_tells_of_files_that_belong_to_no_document_and_repair_removes_them_alone(start, files_kept, tmp_path: Path) -> None:
    environ, folder = files_kept
    server = start(ready=False, environ=environ)
    dataset = ok(server.call("POST", "/datasets", {"name": "kept"}))
    (document_id,) = upload(server, dataset["id"], {"kept.txt": b"kept"})
    lost, theirs = folder / dataset["tenant_id"] / "ab" / ("1" * 32), folder / "reports" / "2026.txt"
    for path in (lost, theirs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left over")
    data = {"MILLRACE_DATA_DIR": str(server.data_dir), "MILLRACE_PORT": "0", **environ}
    found = millrace("check", "--files", **data)
    assert found.returncode == 1, found.stdout
    assert "MEND  files: 1 of 2 belong to no document\n      millrace check --repair removes them" in found.stdout
    assert lost.exists()
    assert "ok    files: 2 looked at, 1 that nobody owned were removed" in millrace("check", "--repair", **data).stdout
    assert not lost.exists()
    assert theirs.exists()
    assert "ok    files: 1 looked at, each has its document" in millrace("check", "--files", **data).stdout
    path = f"/api/v1/datasets/{dataset['id']}/documents/{document_id}"
    assert server.get(path, Authorization=f"Bearer {server.api_key}") == (200, b"kept")
    for file in folder.rglob(document_id):
        file.unlink()
    told = millrace("check", "--repair", **data)
    assert (told.returncode, f"delete the documents and upload them again: {document_id}" in told.stdout) == (1, True), told.stdout


def test_check_says_what_others_on_the_machine_can_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    done = millrace("check", MILLRACE_DATA_DIR=str(data), MILLRACE_PORT="0")
    assert done.returncode == 1
    assert f"MEND  permissions of data: others on this machine can read it (0755)\n      chmod 700 {data}" in done.stdout
    assert "ok    clock: that of the database" in done.stdout
