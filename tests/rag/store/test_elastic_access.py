"""Who may use the cluster: keys, users, a private certificate authority. A real node behind nginx, which asks for them."""

import base64
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rag.errors import SettingsError, Unavailable
from rag.store.elastic import Cluster
from rag.store.elastic_store import ElasticStore
from rag.types import ChunkSelector
from tests.services.elasticsearch import Node
from tests.services.machine import free_port
from tests.services.missing import missing
from tests.services.nginx import MISSING, program

TENANT = "b" * 32
KEY, USER, PASSWORD = "aWQ6c2VjcmV0", "millrace", "p:ss wörd"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Guarded:
    """The node behind TLS and a demand for credentials."""

    url: str
    ca_file: Path


@pytest.fixture(scope="module")
def guarded(elasticsearch_node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    if program() is None or shutil.which("openssl") is None:
        missing(MISSING)
    folder, port = tmp_path_factory.mktemp("guarded"), free_port()
    make_certificates(folder)
    (folder / "nginx.conf").write_text(f"""
daemon off; pid {folder}/pid; error_log {folder}/log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
    scgi_temp_path {folder}/s;
    map $http_authorization $known {{ default 0; "ApiKey {KEY}" 1; "Basic {BASIC}" 1; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;
        location / {{
            default_type application/json;
            if ($known = 0) {{ return 401 '{{"error":{{"type":"security_exception"}},"status":401}}'; }}
            proxy_pass {elasticsearch_node.url}; proxy_http_version 1.1; proxy_set_header Connection "";
        }}
    }}
}}
""")
    process = subprocess.Popen([str(program()), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")])
    try:
        wait_for(port)
        yield Guarded(f"https://127.0.0.1:{port}", folder / "ca.pem")
    finally:
        process.terminate()
        process.wait()


def make_certificates(folder: Path) -> None:
    """An authority, and a server's certificate that it signed."""
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    for command in (
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=tests"],
        ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1"],
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "server.pem", "-days", "2",
         "-extfile", "extensions"],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(0.02)


def count(guarded: Guarded, *hosts: str, **access) -> int:
    store = ElasticStore(Cluster([guarded.url, *hosts], **access))
    try:
        return store.count(TENANT, ChunkSelector(dataset_ids=("d1",)))
    finally:
        store.close()


@pytest.mark.parametrize("access", [{"api_key": KEY}, {"user": USER, "password": PASSWORD}])
def test_a_key_or_a_user_is_let_in_over_a_private_authority(guarded, access):
    assert count(guarded, ca_file=guarded.ca_file, **access) == 0


@pytest.mark.parametrize("access", [{}, {"api_key": "wrong"}, {"user": USER, "password": "wrong"}])
def test_wrong_credentials_are_told_without_being_shown(guarded, access):
    with pytest.raises(Unavailable, match="does not accept our credentials") as refused:
        count(guarded, ca_file=guarded.ca_file, **access)
    assert "wrong" not in str(refused.value)


def test_a_cluster_that_refuses_our_credentials_is_red(guarded):
    store = ElasticStore(Cluster([guarded.url], api_key="wrong", ca_file=guarded.ca_file))
    health = store.health()
    store.close()
    assert health["status"] == "red"
    assert "does not accept our credentials" in health["error"]


def test_a_certificate_of_an_unknown_authority_is_not_trusted(guarded):
    with pytest.raises(Unavailable, match="cannot be reached"):
        count(guarded, api_key=KEY)


def test_of_several_hosts_one_may_be_down(guarded):
    for _ in range(4):
        assert count(guarded, f"https://127.0.0.1:{free_port()}", api_key=KEY, ca_file=guarded.ca_file) == 0


def test_a_ca_file_that_is_not_there_stops_the_start(tmp_path):
    with pytest.raises(SettingsError, match="elasticsearch_ca_file"):
        Cluster(["https://127.0.0.1:9200"], ca_file=tmp_path / "none.pem")


def test_an_address_that_is_none_stops_the_start():
    with pytest.raises(SettingsError, match="elasticsearch_hosts"):
        Cluster(["127.0.0.1"])


def test_what_is_not_elasticsearch_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        cluster = Cluster([url], timeout_seconds=5.0)
        answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Unavailable, match="is not elasticsearch"):
            cluster.ask("GET", "/")
        thread.join()
        cluster.close()


def test_a_password_in_an_address_is_refused_and_not_shown():
    with pytest.raises(SettingsError, match="elasticsearch_user") as refused:
        Cluster(["https://millrace:secret@127.0.0.1:9200"])
    assert "secret" not in str(refused.value)
