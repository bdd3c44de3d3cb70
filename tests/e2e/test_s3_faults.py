"""A bucket that hangs, refuses or is gone: uploads are refused in time and in our words, searches go on, nothing that was taken is lost."""

import io
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.flows import create_dataset, ingest, retrieve, start_parsing, upload, wait_until_parsed
from tests.e2e.server_process import ServerProcess
from tests.services.missing import missing
from tests.services.s3 import BUCKET, MISSING, S3, is_installed, s3

PATIENCE_SECONDS = 1
# a try, two more of the client's own, and what a loaded machine adds; the request's own deadline is 60
REFUSED_WITHIN_SECONDS = 15.0
HERON = b"The heron waits for eels below the weir."


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[S3]:
    if not is_installed():
        missing(MISSING)
    with s3(tmp_path) as running:
        yield running
        running.process.send_signal(signal.SIGCONT)


@pytest.fixture
def server(start: Any, bucket: S3) -> ServerProcess:
    return start(
        environ={**bucket.environ, "MILLRACE_BLOB_URL": f"s3://{BUCKET}/e2e", "MILLRACE_BLOB_TIMEOUT_SECONDS": str(PATIENCE_SECONDS)}
    )


def post_file(server: ServerProcess, dataset_id: str, content: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {server.api_key}"}
    url = f"{server.url}/api/v1/datasets/{dataset_id}/documents"
    return requests.post(url, headers=headers, files={"file": ("wren.txt", content)}, timeout=60)


def assert_refused(server: ServerProcess, dataset_id: str, content: Any) -> None:
    started = time.monotonic()
    reply = post_file(server, dataset_id, content)
    assert (reply.status_code, reply.json()["code"]) == (503, 503), reply.text
    assert "blob store" in reply.json()["message"]
    assert int(reply.headers["Retry-After"]) >= 1
    assert time.monotonic() - started < REFUSED_WITHIN_SECONDS


def wait_until_ready_is(server: ServerProcess, status: int) -> bytes:
    deadline = time.monotonic() + 30
    while True:
        found, body = server.get("/readyz")
        if found == status:
            return body
        assert time.monotonic() < deadline, body
        time.sleep(0.1)


@pytest.mark.parametrize("size", [100, 40 << 20])
def test_a_bucket_that_hangs_refuses_uploads_alone(server: ServerProcess, bucket: S3, size: int) -> None:
    dataset_id = create_dataset(server, "birds")
    ingest(server, dataset_id, {"heron.txt": HERON})
    bucket.process.send_signal(signal.SIGSTOP)
    assert_refused(server, dataset_id, io.BytesIO(b"w" * size))
    assert b'"blobs":{"ok":false' in wait_until_ready_is(server, 503)
    assert retrieve(server, [dataset_id], "heron")["total"] == 1
    bucket.process.send_signal(signal.SIGCONT)
    wait_until_ready_is(server, 200)
    ingest(server, dataset_id, {"wren.txt": b"The wren nests in the wall."})
    assert retrieve(server, [dataset_id], "wren")["total"] == 1


def test_a_document_under_way_waits_for_its_bucket(server: ServerProcess, bucket: S3) -> None:
    dataset_id = create_dataset(server, "birds")
    (document_id,) = upload(server, dataset_id, {"heron.txt": HERON})
    bucket.process.send_signal(signal.SIGSTOP)
    start_parsing(server, dataset_id, [document_id])
    wait_until_ready_is(server, 503)
    bucket.process.send_signal(signal.SIGCONT)
    wait_until_parsed(server, dataset_id, [document_id])


def test_a_bucket_that_is_killed_and_comes_back_has_what_was_taken(server: ServerProcess, bucket: S3, tmp_path: Path) -> None:
    dataset_id = create_dataset(server, "birds")
    (document_id,) = upload(server, dataset_id, {"heron.txt": HERON})
    bucket.process.kill()
    bucket.process.wait()
    assert_refused(server, dataset_id, b"wren")
    with s3(tmp_path, int(bucket.endpoint.rpartition(":")[2])):
        start_parsing(server, dataset_id, [document_id])
        wait_until_parsed(server, dataset_id, [document_id])
        path = f"/api/v1/datasets/{dataset_id}/documents/{document_id}"
        assert server.get(path, Authorization=f"Bearer {server.api_key}") == (200, HERON)


def test_a_damaged_file_is_not_given_out_as_whole_and_fails_its_document(server: ServerProcess, bucket: S3) -> None:
    dataset_id = create_dataset(server, "birds")
    (document_id,) = upload(server, dataset_id, {"heron.txt": HERON})
    (file,) = (path for path in (bucket.folder / BUCKET).rglob(document_id) if path.is_file())
    with file.open("r+b") as damaged:
        damaged.write(b"A")
    status, body = server.get(f"/api/v1/datasets/{dataset_id}/documents/{document_id}", Authorization=f"Bearer {server.api_key}")
    assert status == 500
    assert b"damaged" in body
    start_parsing(server, dataset_id, [document_id])
    deadline = time.monotonic() + 60
    while (found := document(server, dataset_id))["run"] != "FAIL":
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert "damaged" in found["progress_msg"]


def document(server: ServerProcess, dataset_id: str) -> dict[str, Any]:
    _, body = server.call("GET", f"/datasets/{dataset_id}/documents")
    return body["data"]["docs"][0]
