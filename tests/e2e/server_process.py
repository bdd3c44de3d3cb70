"""A real Millrace server in a process of its own, as the end-to-end tests start, kill and question it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# what is built from the weights is the same for every test: build it once
MODEL_CACHE = ROOT / ".cache" / "models"
START_SECONDS = 60.0
STOP_SECONDS = 45.0


class Died(AssertionError):
    """The server process ended when it should not have."""


class Caller:
    """Somebody with a key at a server's address, for the steps in tests/e2e/flows.py."""

    url: str
    data_dir: Path

    @property
    def api_key(self) -> str:
        """The key of the caller's tenant."""
        return (self.data_dir / "api_key").read_text().strip()

    @property
    def logs(self) -> str:
        """Everything that the server, or its servers, have logged."""
        raise NotImplementedError

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body; 0 when nothing answers."""
        return self.request("GET", path, headers=headers)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> tuple[int, bytes]:
        """Status and body; 0 when nothing answers."""
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as reply:
            return reply.code, reply.read()
        except OSError:
            return 0, b""

    def call(self, method: str, path: str, payload: Any = None, timeout: float = 60.0) -> tuple[int, Any]:
        """Status and parsed body of a call of the API, below `/api/v1`, with the key."""
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        body = None if payload is None else json.dumps(payload).encode()
        status, raw = self.request(method, f"/api/v1{path}", body, headers, timeout)
        return status, json.loads(raw) if raw else None


class ServerProcess(Caller):
    """`python -m api serve` (or another command) on a free port over `data_dir`, one process or a parent with `workers`."""

    def __init__(
        self, data_dir: Path, *, log_file: Path, environ: Mapping[str, str] | None = None, command: str = "serve", workers: int = 1
    ) -> None:  # fmt: skip
        self.data_dir = data_dir
        self.log_file = log_file
        self.url = ""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        settings = {"MILLRACE_DATA_DIR": str(data_dir), "MILLRACE_PORT": "0", "MILLRACE_CACHE_DIR": str(MODEL_CACHE)}
        with log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api", command, *(("--workers", str(workers)) if workers > 1 else ())],
                cwd=ROOT,
                env=inherited | {"PYTHONPATH": str(ROOT)} | settings | dict(environ or {}),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        if command == "serve":
            self.url = self._read_url()

    @property
    def logs(self) -> str:
        """Everything the server has logged."""
        return self.log_file.read_text("utf-8", errors="replace")

    def wait_until_ready(self, seconds: float = START_SECONDS) -> "ServerProcess":
        """Return when `/readyz` answers 200."""
        deadline = time.monotonic() + seconds
        while True:
            status, body = self.get("/readyz")
            if status == 200:
                return self
            if time.monotonic() > deadline:
                raise Died(f"not ready after {seconds:g} seconds: {body!r}\n{self.logs[-3000:]}")
            self._check_alive()
            time.sleep(0.02)

    @property
    def worker_ids(self) -> list[int]:
        """The process ids of the workers that live now; without `workers`, of the process itself."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        if self.process.poll() is not None:
            return []
        mine = [int(child) for child in children.read_text().split() if b"--control" in _command_line(int(child))]
        return mine or [self.process.pid]

    def kill(self) -> None:
        """SIGKILL to every process of the server: no chance to say goodbye."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)  # so that it starts no worker between the look and the kill
        workers = self.worker_ids
        self.process.kill()
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        self._ended()

    def stop(self) -> int:
        """SIGTERM, then the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._ended()

    def _ended(self) -> int:
        code = self.process.wait(STOP_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def _read_url(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.match(r"Millrace serves on (\S+)", line)
            if found:
                return found[1]
        raise Died(f"the server did not start (exit code {self._ended()}):\n{self.logs[-3000:]}")

    def _check_alive(self) -> None:
        if self.process.poll() is not None:
            raise Died(f"the server ended with code {self.process.returncode}:\n{self.logs[-3000:]}")


def _command_line(process_id: int) -> bytes:
    try:
        return Path(f"/proc/{process_id}/cmdline").read_bytes()
    except OSError:
        return b""
