"""What is particular to blobs in a bucket, against a real service."""

import io
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag.deadline import within
from rag.errors import Damaged, NotFound, SettingsError, Unavailable
from rag.store.blobs_s3 import S3BlobStore
from rag.store.blobs_s3_upload import PART_BYTES
from tests.services.missing import missing
from tests.services.s3 import BUCKET, MISSING, REGION, S3, is_installed, s3

IMPATIENCE_SECONDS = 0.5


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    if not is_installed():
        missing(MISSING)
    with s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


def store_on(running: S3, tmp_path: Path, bucket: str = BUCKET, **more) -> S3BlobStore:
    given = {"endpoint": running.endpoint, "region": REGION, "keys": running.keys, "timeout_seconds": IMPATIENCE_SECONDS} | more
    return S3BlobStore(f"s3://{bucket}/{uuid.uuid4().hex}", tmp_path / "scratch", **given)


@pytest.fixture
def blobs(service: S3, tmp_path: Path) -> Iterator[S3BlobStore]:
    store = store_on(service, tmp_path)
    yield store
    store.close()


@pytest.fixture
def stopped(service: S3) -> Iterator[S3]:
    """The service takes connections and answers nothing."""
    service.process.send_signal(signal.SIGSTOP)
    yield service
    service.process.send_signal(signal.SIGCONT)


def stored_file(service: S3, name: str) -> Path:
    (found,) = (path for path in (service.folder / BUCKET).rglob(name) if path.is_file())
    return found


@pytest.mark.parametrize("size", [1_000, 9 << 20])
@pytest.mark.parametrize("place", [0, 500, -1])
def test_a_changed_byte_is_noticed_before_the_last_one_is_given_out(service: S3, blobs: S3BlobStore, size: int, place: int) -> None:
    name = uuid.uuid4().hex
    blobs.put(name, io.BytesIO(b"x" * size))
    file = stored_file(service, name)
    with file.open("r+b") as damaged:
        damaged.seek(place, io.SEEK_END if place < 0 else io.SEEK_SET)
        byte = damaged.read(1)
        damaged.seek(place, io.SEEK_END if place < 0 else io.SEEK_SET)
        damaged.write(bytes([byte[0] ^ 1]))
    seen: list[bytes] = []
    with pytest.raises(Damaged), blobs.open(name) as reader:
        seen.extend(iter(lambda: reader.read(1 << 20), b""))
    assert sum(map(len, seen)) < size
    with pytest.raises(Damaged), blobs.local_path(name):
        pass
    assert not list((blobs._scratch).glob("*")), "no half copy stays"


def test_a_file_of_somebody_else_is_not_taken_for_one_of_ours(service: S3, blobs: S3BlobStore) -> None:
    blobs.put("neighbour", io.BytesIO(b"x"))
    stored_file(service, "neighbour").write_bytes(b"put here by another program")
    with pytest.raises(Damaged):
        blobs.open("neighbour")


def test_a_cut_file_is_damaged(service: S3, blobs: S3BlobStore) -> None:
    name = uuid.uuid4().hex
    blobs.put(name, io.BytesIO(bytes(5 << 20)))
    file = stored_file(service, name)
    with file.open("r+b") as cut:
        cut.truncate(file.stat().st_size - 10)
    with pytest.raises(Damaged), blobs.open(name) as reader:
        reader.read()


def test_an_unfinished_upload_is_taken_back_while_its_client_is_still_there(service: S3, blobs: S3BlobStore) -> None:
    writer = blobs.writer("slow")
    for _ in range(3):
        writer.write(bytes(PART_BYTES))
    wait_until(lambda: service.parts)
    writer.abort()
    assert not service.parts
    with pytest.raises(NotFound):
        blobs.open("slow")


def wait_until(happens) -> None:
    deadline = time.monotonic() + 10
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_service_that_hangs_is_unavailable_within_the_time_given(stopped: S3, blobs: S3BlobStore) -> None:
    calls = [
        lambda: blobs.put("a", io.BytesIO(b"1")),
        lambda: blobs.put("a", io.BytesIO(bytes(5 * PART_BYTES))),
        lambda: blobs.open("a"),
        lambda: blobs.local_path("a").__enter__(),
        lambda: blobs.delete("a"),
        lambda: list(blobs.list()),
    ]
    for call in calls:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            call()
        assert time.monotonic() - started < 6 * IMPATIENCE_SECONDS + 1.5
    assert blobs.health()["status"] == "red"


def test_a_service_that_keeps_failing_is_left_alone_for_a_while_and_asked_again(service: S3, blobs: S3BlobStore) -> None:
    service.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(5):
            with pytest.raises(Unavailable, match="does not answer"):
                blobs.put("a", io.BytesIO(b"1"))
        started = time.monotonic()
        for size in (1, 2 * PART_BYTES):
            with pytest.raises(Unavailable, match="is left alone for a while"):
                blobs.put("a", io.BytesIO(bytes(size)))
        assert time.monotonic() - started < 0.2
    finally:
        service.process.send_signal(signal.SIGCONT)
    wait_until(lambda: blobs.health()["status"] == "green")
    assert blobs.put("a", io.BytesIO(b"1")) == 1


def test_a_service_that_refuses_us_is_not_taken_for_a_dead_one(service: S3, tmp_path: Path) -> None:
    blobs = store_on(service, tmp_path, keys={"access_key_id": "test-access", "secret_access_key": "wrong"})
    for _ in range(10):
        with pytest.raises(Unavailable, match="refuses our credentials"):
            blobs.put("a", io.BytesIO(b"1"))


def test_a_large_upload_ends_with_its_requests_deadline(stopped: S3, tmp_path: Path) -> None:
    blobs = store_on(stopped, tmp_path, timeout_seconds=30)
    started = time.monotonic()
    writer = blobs.writer("late")
    with within(0.3), pytest.raises(Unavailable):
        all(writer.write(bytes(PART_BYTES)) is None for _ in range(8))
    assert time.monotonic() - started < 5
    stopped.process.send_signal(signal.SIGCONT)
    writer.abort()
    blobs.close()


def test_a_service_that_comes_back_takes_the_next_file(service: S3, blobs: S3BlobStore) -> None:
    service.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            blobs.put("again", io.BytesIO(b"1"))
    finally:
        service.process.send_signal(signal.SIGCONT)
    assert blobs.put("again", io.BytesIO(b"1")) == 1
    assert blobs.health() == {"type": "s3", "status": "green"}


def test_a_service_that_refuses_connections_is_unavailable(service: S3, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    blobs = store_on(service, tmp_path, endpoint=f"http://127.0.0.1:{port}")
    with pytest.raises(Unavailable, match=r"^the blob store does not answer$"):
        blobs.put("a", io.BytesIO(b"1"))


def test_a_missing_bucket_is_not_a_missing_file(service: S3, tmp_path: Path) -> None:
    blobs = store_on(service, tmp_path, bucket="no-such-bucket")
    with pytest.raises(Unavailable, match="no such bucket"):
        blobs.open("a")
    assert blobs.health()["status"] == "red"


def test_refused_keys_are_told_without_the_services_words(service: S3, tmp_path: Path) -> None:
    blobs = store_on(service, tmp_path, keys={"access_key_id": "test-access", "secret_access_key": "wrong"})
    with pytest.raises(Unavailable, match=r"^the blob store refuses our credentials$"):
        blobs.put("a", io.BytesIO(b"1"))
    assert blobs.health()["error"] == "the blob store refuses our credentials"


@pytest.mark.parametrize("url", ["", "s3://", "https://bucket", "bucket/prefix"])
def test_an_address_that_is_none_stops_the_start(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="MILLRACE_BLOB_URL"):
        S3BlobStore(url, tmp_path)


def test_copies_of_a_killed_process_are_removed_and_those_in_use_are_not(service: S3, blobs: S3BlobStore, tmp_path: Path) -> None:
    blobs.put("copied", io.BytesIO(b"1"))
    with blobs.local_path("copied") as held:
        left = held.with_name("blob-left")
        left.write_bytes(b"half")
        for path in (held, left):
            ago = time.time() - 3600
            os.utime(path, (ago, ago))
        store_on(service, tmp_path)
        assert held.exists()
        assert not left.exists()
    assert not held.exists()


def test_many_slow_uploads_hold_one_thread_together(service: S3, tmp_path: Path) -> None:
    blobs = store_on(service, tmp_path, timeout_seconds=30)
    before = threading.active_count()
    writers = [blobs.writer(f"slow-{number}") for number in range(20)]
    for writer in writers:
        writer.write(bytes(PART_BYTES))
    assert threading.active_count() <= before + 1
    for writer in writers:
        assert writer.commit() == PART_BYTES
    blobs.close()
