"""Private Elasticsearch nodes for tests: real servers, throw-away, on free ports of the loopback."""

import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import orjson

from tests.services.machine import children, free_port, stop
from tests.services.missing import missing

PREPARE = Path(__file__).with_name("elasticsearch_node") / "prepare"
INSTALL = "a JDK 17 or later and Maven (bin/services elasticsearch)"
START_SECONDS = 120.0
HOME = "MILLRACE_TEST_ELASTICSEARCH_HOME"


class Node:
    """A node that can be killed, stopped in its tracks and started again on the same ports and data."""

    def __init__(self, folder: Path, *, heap: str = "512m", settings: Sequence[str] = ()) -> None:
        """`settings` are `name=value`. Makes the node's home in `folder`; `start` runs it."""
        self.folder, self.heap, self.settings = folder, heap, list(settings)
        self.port, self.transport_port = free_port(), free_port()
        for name in ("config", "data", "logs", "plugins"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.prepare()

    def prepare(self) -> None:
        """Make the folder what the program wants."""
        self.program = prepared()
        (self.folder / "modules").symlink_to(self.program / "modules")

    @property
    def url(self) -> str:
        """The node's address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> "Node":
        """Run it, and wait until it has its shards back."""
        with (self.folder / "log").open("ab") as log:
            self.process = self.run(log)
        return self.wait() if wait else self

    def run(self, log: BinaryIO) -> "subprocess.Popen[bytes]":
        """The program's process."""
        command = [
            shutil.which("java") or "java", f"-Xms{self.heap}", f"-Xmx{self.heap}", "-XX:+UseSerialGC",
            "-cp", f"{self.program / 'lib'}/*:{self.program / 'classes'}", "ElasticsearchNode",
            str(self.folder), str(self.port), str(self.transport_port), *self.settings,
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def wait(self, status: str = "yellow", nodes: int = 1) -> "Node":
        """Return when the cluster is at least in this state and of so many nodes."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                break
            try:
                answer = self.ask("GET", f"/_cluster/health?wait_for_status={status}&wait_for_nodes=>={nodes}&timeout=5s", seconds=10)
                if not answer["timed_out"]:
                    return self
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"elasticsearch did not start:\n{(self.folder / 'log').read_text(errors='replace')[-2000:]}")

    def ask(self, method: str, path: str, body: object = None, *, seconds: float = 30.0) -> dict:
        """The answer to a request, for what tests do behind the store's back. Raises `OSError`."""
        data = None if body is None else orjson.dumps(body)
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return orjson.loads(response.read())

    def stop_in_its_tracks(self) -> None:
        """The process answers nothing and closes nothing, as a machine that swaps or a network that drops."""
        stop(self.process.pid)

    def go_on(self) -> None:
        """End of that."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As `kill -9`."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class UnpackedNode(Node):
    """A node of the Elasticsearch that was unpacked where MILLRACE_TEST_ELASTICSEARCH_HOME says: its launcher, and the server below it."""

    def prepare(self) -> None:
        self.program = Path(os.environ[HOME])
        self.owner = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
        shutil.copytree(self.program / "config", self.folder / "config", dirs_exist_ok=True)
        options = self.folder / "config" / "jvm.options"
        kept = [line for line in options.read_text().splitlines() if "-Xlog:gc" not in line]  # a file in the program's folder
        options.write_text("\n".join(kept))
        if self.owner:
            for path in (self.folder, *self.folder.rglob("*")):
                shutil.chown(path, self.owner)

    def run(self, log: BinaryIO) -> "subprocess.Popen[bytes]":
        alone = not any(setting.startswith("discovery.") for setting in self.settings)
        settings = [
            f"path.data={self.folder / 'data'}", f"path.logs={self.folder / 'logs'}", f"node.name=node-{self.port}",
            "network.host=127.0.0.1", f"http.port={self.port}", f"transport.port={self.transport_port}", "xpack.security.enabled=false",
            "cluster.routing.allocation.disk.threshold_enabled=false", *(["discovery.type=single-node"] if alone else []), *self.settings,
        ]  # fmt: skip
        environ = {**os.environ, "ES_PATH_CONF": str(self.folder / "config"), "ES_JAVA_OPTS": f"-Xms{self.heap} -Xmx{self.heap}"}
        return subprocess.Popen(
            [str(self.program / "bin" / "elasticsearch"), *(f"-E{setting}" for setting in settings)], env=environ, cwd=self.folder,
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, user=self.owner, extra_groups=[] if self.owner else None,
        )  # fmt: skip

    def stop_in_its_tracks(self) -> None:
        for pid in children(self.process.pid):
            stop(pid)

    def go_on(self) -> None:
        for pid in children(self.process.pid):
            os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        if self.process is None:
            return
        servers = [(pid, os.pidfd_open(pid)) for pid in children(self.process.pid)]
        super().kill()
        for pid, end in servers:
            os.kill(pid, signal.SIGKILL)
            select.select([end], [], [])  # the data is its own until then
            os.close(end)


def prepared() -> Path:
    """The folder of the node's program; the test is skipped (in CI: fails) where it cannot be made."""
    if shutil.which("java") is None:
        missing(f"elasticsearch needs {INSTALL}")
    made = subprocess.run([str(PREPARE)], capture_output=True, text=True, check=False)
    if made.returncode:
        missing(f"elasticsearch cannot be built: {made.stderr.strip()[-300:]}; it needs {INSTALL}")
    return Path(made.stdout.strip())


def new_node(folder: Path, *, heap: str, settings: Sequence[str] = ()) -> Node:
    """A node of the Elasticsearch that was named, or of the one that is built."""
    return (UnpackedNode if HOME in os.environ else Node)(folder, heap=heap, settings=settings)


@contextmanager
def elasticsearch(*, heap: str = "512m", settings: Sequence[str] = ()) -> Iterator[Node]:
    """A running node, a cluster of its own; removed with its data when the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="millrace-elasticsearch-", dir=os.environ.get("MILLRACE_TEST_DIR")))
    node = None
    try:
        node = new_node(folder, heap=heap, settings=settings)
        yield node.start()
    finally:
        if node is not None:
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def elasticsearch_cluster(count: int = 3, *, heap: str = "384m") -> Iterator[list[Node]]:
    """A cluster of several nodes."""
    with ExitStack() as stack:
        nodes = []
        for _ in range(count):
            folder = Path(tempfile.mkdtemp(prefix="millrace-elasticsearch-", dir=os.environ.get("MILLRACE_TEST_DIR")))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            nodes.append(new_node(folder, heap=heap))
            stack.callback(nodes[-1].kill)
        hosts = ",".join(f"127.0.0.1:{node.transport_port}" for node in nodes)
        names = ",".join(f"node-{node.port}" for node in nodes)
        for node in nodes:
            node.settings += [f"discovery.seed_hosts={hosts}", f"cluster.initial_master_nodes={names}"]
            node.start(wait=False)
        for node in nodes:
            node.wait("green", count)
        yield nodes
