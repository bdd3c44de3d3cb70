import io
import shlex
import socket
import sys

import pytest

from api.listening import TCP_PATIENCE, announce, listen, url_of
from rag.errors import SettingsError


def test_port_zero_takes_a_free_one_and_tells_it() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        assert url_of(listener) == f"http://127.0.0.1:{port}"


def test_a_taken_port_is_a_settings_error_in_one_line() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}: address already in use"):
            listen("127.0.0.1", port)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere fewer of these can be set")
def test_clients_that_are_gone_or_take_nothing_in_are_given_up() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert {name: connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in TCP_PATIENCE} == TCP_PATIENCE


def test_an_unknown_host_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="MILLRACE_HOST"):
        listen("no.such.host.invalid", 0)


def test_any_address_is_reached_by_the_local_one() -> None:
    with listen("0.0.0.0", 0) as listener:
        assert url_of(listener).startswith("http://127.0.0.1:")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_ipv6_address_stands_in_brackets() -> None:
    try:
        listener = listen("::1", 0)
    except SettingsError:
        pytest.skip("this machine has no IPv6 loopback")
    with listener:
        assert url_of(listener).startswith("http://[::1]:")


def test_the_announced_request_is_one_shell_command() -> None:
    out = io.StringIO()
    announce("http://127.0.0.1:9380", "ragflow-x", out)
    text = out.getvalue()
    assert "ragflow-x" in text
    command = shlex.split(text[text.index("curl") :].replace("\\\n", ""))
    assert command[:3] == ["curl", "-s", "http://127.0.0.1:9380/api/v1/datasets"]
    assert "Authorization: Bearer ragflow-x" in command
