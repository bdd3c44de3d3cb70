"""A private S3 service: versitygw over a temporary folder."""

import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.services.machine import free_port

PROGRAM = Path(__file__).parents[2] / ".cache" / "bin" / "versitygw"
MISSING = "versitygw is not installed: bin/services s3"
BUCKET = "millrace-test"
REGION = "us-east-1"
START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class S3:
    """A running service with one bucket, kept in `folder`; `process` may be stopped, continued and killed."""

    endpoint: str
    keys: Mapping[str, str]
    folder: Path
    process: "subprocess.Popen[bytes]"

    @property
    def environ(self) -> dict[str, str]:
        """What a server process needs beside `MILLRACE_BLOB_URL`."""
        return {
            "MILLRACE_BLOB_ENDPOINT": self.endpoint,
            "MILLRACE_BLOB_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.keys["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": self.keys["secret_access_key"],
        }

    @property
    def parts(self) -> list[Path]:
        """Parts of uploads that were neither completed nor aborted."""
        return [path for path in (self.folder / BUCKET / ".sgwtmp").rglob("*") if path.is_file()]


def is_installed() -> bool:
    """Whether `s3` can start here."""
    return PROGRAM.exists()


@contextmanager
def s3(folder: Path, port: int = 0) -> Iterator[S3]:
    """Run a service on a free port (or on `port`) until the block is left; what it stored is left in `folder`."""
    stored = folder / "s3"
    (stored / BUCKET).mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    keys = {"access_key_id": "test-access", "secret_access_key": "test-secret-key"}
    environ = {"PATH": os.environ["PATH"], "ROOT_ACCESS_KEY": keys["access_key_id"], "ROOT_SECRET_KEY": keys["secret_access_key"]}
    command = [str(PROGRAM), "--quiet", "--keep-alive", "--region", REGION, "--port", f"127.0.0.1:{port}", "posix", str(stored)]
    with (folder / "s3.log").open("ab") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        _wait_until_it_answers(port, process)
        yield S3(f"http://127.0.0.1:{port}", keys, stored, process)
    finally:
        process.kill()
        process.wait()


def remove(service: S3) -> None:
    """Empty the bucket."""
    for path in (service.folder / BUCKET).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _wait_until_it_answers(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        except OSError:
            assert process.poll() is None, "the S3 service ended at its start"
            assert time.monotonic() < deadline, "the S3 service does not answer"
            time.sleep(0.05)
        finally:
            connection.close()
