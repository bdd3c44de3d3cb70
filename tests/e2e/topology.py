"""Millrace as a team runs it that has outgrown one machine: nginx, two servers of two workers, and the real services behind them."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.server_process import MODEL_CACHE, ROOT, Caller, ServerProcess
from tests.services import elasticsearch, nginx, postgres, redis, s3
from tests.services.missing import missing

SERVERS = 2
WORKERS = 2


@dataclass
class Topology:
    """The running whole. `environ` holds the settings that its servers share; `servers` are the hosts, nginx knows their ports."""

    url: str
    servers: list[ServerProcess]
    environ: Mapping[str, str]
    folder: Path
    node: elasticsearch.Node
    bucket: s3.S3
    workers: list[ServerProcess] = field(default_factory=list)

    @property
    def database_url(self) -> str:
        """The address of the database, for what tests do behind the servers' backs."""
        return self.environ["MILLRACE_DATABASE_URL"]

    def start_server(self, number: int) -> ServerProcess:
        """A host's server, with a data directory of its own; on the port that it had, if it was there before."""
        known = number < len(self.servers)
        port = self.servers[number].url.rpartition(":")[2] if known else "0"
        name = f"host-{number}"
        server = ServerProcess(
            self.folder / name, log_file=self.folder / f"{name}.log", environ={**self.environ, "MILLRACE_PORT": port}, workers=WORKERS
        )
        self.servers[number : number + 1] = [server]
        return server

    def start_worker(self) -> ServerProcess:
        """A host that only ingests."""
        worker = ServerProcess(self.folder / "worker", log_file=self.folder / "worker.log", environ=self.environ, command="worker")
        self.workers.append(worker)
        return worker

    def kill(self) -> None:
        """End every server and worker at once."""
        for process in (*self.servers, *self.workers):
            process.kill()

    def tenant(self, name: str) -> "Front":
        """Somebody who calls nginx with the key of a tenant of their own."""
        folder = self.folder / "tenants" / name
        folder.mkdir(parents=True)
        (folder / "api_key").write_text(self.create_key(name))
        return Front(self, folder)

    def create_key(self, tenant: str) -> str:
        """A key of a tenant, which is made if there is none."""
        done = self.millrace("keys", "create", "--tenant", tenant)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def millrace(self, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """Run the program as on a further host of the topology."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        settings = {**self.environ, "MILLRACE_DATA_DIR": str(self.folder / "console"), **environ}
        command = [sys.executable, "-m", "api", *arguments]
        return subprocess.run(command, cwd=ROOT, env=inherited | settings, capture_output=True, text=True, timeout=120, check=False)


class Front(Caller):
    """A caller of nginx. `data_dir` holds the key, as a server's does."""

    def __init__(self, topology: Topology, data_dir: Path) -> None:
        self.topology = topology
        self.url = topology.url
        self.data_dir = data_dir

    @property
    def logs(self) -> str:
        """What all servers have logged."""
        return "".join(server.logs for server in self.topology.servers)


def require_services() -> None:
    """Skip, or fail in CI, where a service of the topology is not installed."""
    for is_installed, reason in (
        (nginx.program() is not None, nginx.MISSING),
        (postgres.installed(), postgres.INSTALL),
        (redis.program() is not None, redis.INSTALL),
        (s3.is_installed(), s3.MISSING),
    ):
        if not is_installed:
            missing(reason)


@contextmanager
def topology(folder: Path, more: Mapping[str, str] | None = None) -> Iterator[Topology]:
    """Start everything; `more` are settings for the servers. Nothing of it runs when the block is left."""
    with ExitStack() as stack:
        database = stack.enter_context(postgres.postgres()).create_database("millrace")
        node = stack.enter_context(elasticsearch.elasticsearch())
        cache = stack.enter_context(redis.redis_server())
        bucket = stack.enter_context(s3.s3(folder))
        environ = {
            "MILLRACE_CACHE_DIR": str(MODEL_CACHE),
            "MILLRACE_DATABASE_URL": database,
            "MILLRACE_STORE": "elasticsearch",
            "MILLRACE_ELASTICSEARCH_HOSTS": node.url,
            "MILLRACE_REDIS_URL": cache.url,
            "MILLRACE_BLOB_URL": f"s3://{s3.BUCKET}/{uuid.uuid4().hex}",
            **bucket.environ,
            **(more or {}),
        }
        running = Topology("", [], environ, folder, node, bucket)
        stack.callback(running.kill)
        for number in range(SERVERS):
            running.start_server(number)
        for server in running.servers:
            server.wait_until_ready()
        running.url = stack.enter_context(nginx.nginx(folder, [server.url.removeprefix("http://") for server in running.servers])).url
        yield running
