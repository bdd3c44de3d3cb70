"""Broken disks and broken files: each gives a clear error or is mended, nothing acknowledged is lost, the server goes on."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.e2e.conftest import needs
from tests.e2e.flows import create_dataset, documents, ingest, ok, retrieve, start_parsing, upload, wait_until_parsed
from tests.e2e.server_process import ServerProcess

SMALL_DISK = "24m"
HERON = {"heron.txt": b"The heron stands in the mill pond and waits for eels."}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB that can be filled and made read-only."""
    if os.geteuid() != 0:
        needs("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        needs(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class AbortedDisk:
    """A disk of its own, which gives up under whoever writes to it as ext4 does after an error: what is there can be read."""

    def __init__(self, image: Path, folder: Path) -> None:
        self._image = image
        self.folder = folder

    def mount(self) -> subprocess.CompletedProcess[str]:
        """Mount it, also after it gave up."""
        return subprocess.run(["mount", "-t", "ext4", "-o", "loop", str(self._image), str(self.folder)], capture_output=True, text=True)

    def abort(self) -> None:
        """From now on nothing can be written, not even to open files."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.folder)], check=True)

    def unmount(self) -> None:
        """Nobody may use it any more."""
        subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[AbortedDisk]:
    """A disk of 64 MB, on machines that have such devices: not every container does."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("only root can mount a file system, and mkfs.ext4 has to be there")
    image, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    disk = AbortedDisk(image, folder)
    mounted = disk.mount()
    if mounted.returncode:
        pytest.skip(f"a file system in a file cannot be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write to the file until its file system is full."""
    with file.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(bytes(1 << 14)):
            pass


def ready_state(server: ServerProcess) -> tuple[int, str]:
    """Status and body of `/readyz`, asked when the last answer is not remembered any more."""
    time.sleep(1.1)
    status, body = server.get("/readyz")
    return status, body.decode()


def post_file(server: ServerProcess, dataset_id: str, name: str, content: bytes) -> requests.Response:
    return requests.post(
        f"{server.url}/api/v1/datasets/{dataset_id}/documents",
        headers={"Authorization": f"Bearer {server.api_key}"},
        files={"file": (name, content)},
        timeout=60,
    )


def assert_heron_is_found(server: ServerProcess, dataset_id: str) -> None:
    for weight in (0, 1):
        found = retrieve(server, [dataset_id], "What does the heron wait for?", vector_similarity_weight=weight, similarity_threshold=0)
        assert found["chunks"][0]["document_keyword"] == "heron.txt"


def test_a_full_disk_refuses_uploads_and_keeps_what_was_there(start, small_disk: Path) -> None:
    server = start(small_disk / "data")
    dataset_id = create_dataset(server, "birds")
    ingest(server, dataset_id, HERON)
    filler = small_disk / "filler"
    fill(filler)
    reply = post_file(server, dataset_id, "big.txt", b"some words " * 400_000)
    assert reply.status_code == 503, reply.text
    assert reply.headers["Retry-After"]
    assert reply.json()["code"] in (102, 503)
    status, body = ready_state(server)
    assert status == 503
    assert '"ok":false' in body
    assert_heron_is_found(server, dataset_id)
    filler.unlink()
    assert ready_state(server)[0] == 200
    ingest(server, dataset_id, {"wren.txt": b"The wren nests in the wall of the mill."})
    assert {document["name"] for document in documents(server, dataset_id).values()} == {"heron.txt", "wren.txt"}
    assert server.stop() == 0


def test_a_disk_that_fills_while_a_document_is_ingested_delays_it_and_loses_nothing(start, small_disk: Path) -> None:
    server = start(small_disk / "data")
    dataset_id = create_dataset(server, "birds")
    ingest(server, dataset_id, HERON)
    text = "\n\n".join(f"Paragraph {number} tells of herons and wrens and of the pond they share." * 3 for number in range(400))
    ids = upload(server, dataset_id, {"long.txt": text.encode()})
    start_parsing(server, dataset_id, ids)
    filler = small_disk / "filler"
    fill(filler)
    assert_heron_is_found(server, dataset_id)
    filler.unlink()
    wait_until_parsed(server, dataset_id, ids, seconds=150)
    assert_heron_is_found(server, dataset_id)


def test_a_read_only_data_directory_stops_the_start_with_one_line(start, small_disk: Path, tmp_path: Path) -> None:
    server = start(small_disk / "data")
    dataset_id = create_dataset(server, "birds")
    ingest(server, dataset_id, HERON)
    server.stop()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = start(small_disk / "data", command="worker", ready=False)
    assert refused.process.wait(60) == 2
    assert refused.logs.startswith("millrace: cannot write to the data directory")
    assert refused.logs.count("\n") == 1
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert_heron_is_found(start(small_disk / "data"), dataset_id)


def test_a_disk_that_turns_read_only_under_a_server_refuses_writes_and_stops_no_search(start, disk: AbortedDisk) -> None:
    server = start(disk.folder / "data")
    dataset_id = create_dataset(server, "birds")
    ingest(server, dataset_id, HERON)
    assert_heron_is_found(server, dataset_id)  # who was never searched cannot be opened any more
    disk.abort()
    for content in (b"The wren nests in the wall of the mill.", b"some words " * 200_000):
        reply = post_file(server, dataset_id, "wren.txt", content)
        assert reply.status_code == 503, reply.text
        assert reply.headers["Retry-After"]
        assert reply.json()["message"]
        assert str(disk.folder) not in reply.text
    status, body = ready_state(server)
    assert status == 503
    reasons = {name: state["reason"] for name, state in json.loads(body)["parts"].items() if not state["ok"]}
    assert set(reasons) == {"database", "blobs", "store"}
    assert all("read" in reason and "only" in reason for reason in reasons.values()), reasons
    assert_heron_is_found(server, dataset_id)
    server.stop()
    disk.unmount()
    disk.mount()
    server = start(disk.folder / "data")
    assert_heron_is_found(server, dataset_id)
    ingest(server, dataset_id, {"wren.txt": b"The wren nests in the wall of the mill."})
    assert {document["name"] for document in documents(server, dataset_id).values()} == {"heron.txt", "wren.txt"}


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
@pytest.mark.parametrize("part", ["text", "vectors"])
def test_damaged_derived_files_are_rebuilt_from_the_record(start, part: str, damage: str) -> None:
    server = start()
    dataset_id = create_dataset(server, "birds")
    ingest(server, dataset_id, HERON)
    assert server.stop() == 0
    files = [path for path in server.data_dir.glob(f"chunks/*/{part}/**/*") if path.is_file() and path.stat().st_size]
    assert files
    for path in files:
        match damage:
            case "truncated":
                os.truncate(path, path.stat().st_size // 2)
            case "garbage":
                path.write_bytes(os.urandom(path.stat().st_size))
            case "missing":
                path.unlink()
    server = start()
    deadline = time.monotonic() + 30
    while retrieve(server, [dataset_id], "heron").get("degraded"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert_heron_is_found(server, dataset_id)
    ingest(server, dataset_id, {"wren.txt": b"The wren nests in the wall of the mill."})
    assert retrieve(server, [dataset_id], "wren")["chunks"][0]["document_keyword"] == "wren.txt"


def test_a_model_that_does_not_answer_leaves_search_by_words(start, tmp_path: Path) -> None:
    config = tmp_path / "millrace.toml"
    model = ['name = "gone"', 'provider = "Test"', 'kind = "embedding"', 'base_url = "http://127.0.0.1:9/v1"', "default = true"]
    config.write_text("\n".join(["[[models]]", *model]))
    server = start(environ={"MILLRACE_CONFIG": str(config)}, ready=False)
    status, body = ready_state(server)
    assert status == 503
    assert "the embedding model does not answer" in body
    dataset_id = create_dataset(server, "words only")
    found = retrieve(server, [dataset_id], "heron")
    assert found["total"] == 0
    assert ok(server.call("GET", "/datasets"))


def speak(server: ServerProcess, text: bytes) -> bytes:
    """The beginning of what the server says to these bytes."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(text)
        return connection.recv(4096)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\nlong: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n", b"400"),
        (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
        (b"GET /%ff%fe%00 HTTP/1.1\r\nhost: x\r\n\r\n", b"404"),
        (
            b"GET /x HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"sec-websocket-version: 13\r\n\r\n",
            b"403",
        ),
    ],
    ids=["no HTTP", "long header", "length that is no number", "raw bytes", "undecodable path", "websocket"],
)
def test_broken_requests_are_refused_and_the_server_goes_on(alone: ServerProcess, text: bytes, status: bytes) -> None:
    assert speak(alone, text).startswith(b"HTTP/1.1 " + status)
    assert alone.get("/healthz")[0] == 200
    assert '"level":"error"' not in alone.logs
