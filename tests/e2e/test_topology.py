"""What belongs to a whole topology and to no single server of it."""

import re
import subprocess
import time

import requests

from tests.e2e.flows import create_dataset, ingest, retrieve
from tests.e2e.topology import Topology


def check(grown: Topology, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`millrace check` on a host of the topology."""
    return grown.millrace("check", *arguments, MILLRACE_PORT="0", **environ)


def test_check_finds_nothing_to_mend_on_a_host_of_it(grown: Topology) -> None:
    done = check(grown, "--files")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("ok  ") for line in lines)
    for part in ("database (postgresql): works", "blobs (s3): works", "store (elasticsearch): works", "redis: works", "clock: "):
        assert any(line.startswith(f"ok    {part}") for line in lines), part
    assert any(re.match(r"ok    version of postgresql: \d+", line) for line in lines)
    assert any(re.match(r"ok    version of elasticsearch: \d+\.\d+", line) for line in lines)


def test_check_names_the_service_that_is_not_there_and_tells_no_secret(grown: Topology) -> None:
    gone = {"MILLRACE_BLOB_ENDPOINT": "http://127.0.0.1:9", "MILLRACE_ELASTICSEARCH_HOSTS": "http://127.0.0.1:9"}
    done = check(grown, **gone)
    assert done.returncode == 1
    for part in ("blobs (s3)", "store (elasticsearch)"):
        assert f"MEND  {part}: " in done.stdout
    for name, value in grown.environ.items():
        assert "SECRET" not in name or value not in done.stdout + done.stderr


def test_what_one_server_took_every_worker_of_both_finds(grown: Topology) -> None:
    caller = grown.tenant("found-everywhere")
    dataset_id = create_dataset(caller, "birds")
    ingest(caller, dataset_id, {"heron.txt": b"The heron waits below the weir."})
    for _ in range(20):  # a connection each
        assert retrieve(caller, [dataset_id], "heron")["total"] == 1
    for server in grown.servers:
        text = requests.get(f"{server.url}/metrics", timeout=30).text
        assert set(re.findall(r'^process_start_time_seconds\{worker="(\d)"\}', text, re.MULTILINE)) == {"0", "1"}


def test_a_deleted_key_is_refused_by_every_worker_soon(grown: Topology) -> None:
    caller = grown.tenant("leaver")
    assert caller.call("GET", "/datasets")[0] == 200
    assert grown.millrace("keys", "delete", caller.api_key).returncode == 0
    headers = {"Authorization": f"Bearer {caller.api_key}"}

    def statuses() -> set[int]:
        return {requests.get(f"{caller.url}/api/v1/datasets", headers=headers, timeout=30).status_code for _ in range(8)}

    deadline = time.monotonic() + 30
    while statuses() != {401}:
        assert time.monotonic() < deadline, "a worker still knows the key"
        time.sleep(0.2)
