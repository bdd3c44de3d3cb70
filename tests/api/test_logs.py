import io
import logging
from collections.abc import Iterator

import orjson
import pytest
import structlog

from api.logs import configure, describe
from rag.errors import NotFound, Unavailable


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers, root.level
    stream = io.StringIO()
    configure("info", "json", stream)
    yield stream
    root.handlers, root.level = before[0], before[1]
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def failure(secret: str) -> Exception:
    try:
        raise ValueError(secret)
    except ValueError as error:
        return error


def test_an_exception_is_logged_by_class_and_place_without_its_message(stream: io.StringIO) -> None:
    structlog.get_logger().error("it failed", exc_info=failure("what the user wrote"))
    (line,) = lines(stream)
    assert line["error"] == "ValueError"
    assert "test_logs.py" in str(line["frames"])
    assert "what the user wrote" not in stream.getvalue()


def test_the_line_of_a_library_keeps_its_template_and_drops_its_values(stream: io.StringIO) -> None:
    try:
        raise ValueError("quoted secret")
    except ValueError:
        logging.getLogger("some.library").exception("cannot read %s\nsecond line", "secret path")
    (line,) = lines(stream)
    assert line["event"] == "cannot read %s"
    assert line["logger"] == "some.library"
    assert line["error"] == "ValueError"
    assert "secret" not in stream.getvalue()


def test_chatter_of_libraries_is_left_out(stream: io.StringIO) -> None:
    logging.getLogger("some.library").info("connected to somewhere")
    assert lines(stream) == []


def test_lines_below_the_level_are_left_out(stream: io.StringIO) -> None:
    structlog.get_logger().debug("detail")
    assert lines(stream) == []


def test_messages_of_our_own_errors_and_of_the_system_are_kept() -> None:
    assert describe(NotFound("no such dataset")) == "NotFound: no such dataset"
    error = Unavailable("the disk is full")
    error.__cause__ = OSError(28, "No space left on device", "/some/path")
    assert describe(error) == "Unavailable: the disk is full <- OSError: No space left on device"
    assert describe(ExceptionGroup("two", [KeyError("secret"), NotFound("x")])) == "ExceptionGroup: KeyError; NotFound: x"


def test_text_lines_are_for_people() -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers, root.level
    configure("info", "text", stream)
    structlog.get_logger().info("serving", url="http://127.0.0.1:1")
    root.handlers, root.level = before[0], before[1]
    structlog.reset_defaults()
    assert "serving" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
