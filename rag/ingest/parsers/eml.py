"""E-mail (RFC 5322, MIME): who, when, about what, the body, attached texts and forwarded messages, and the names of the rest."""

import email
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage, Message
from pathlib import Path
from typing import cast

from rag.errors import ParseFailed
from rag.ingest.parsers.html import add_html
from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder, decode
from rag.types import ParsedDocument

MAX_DEPTH = 8  # of messages forwarded in forwarded messages
MAX_PARTS = 1000  # of a message and all forwarded in it
_DEEPEST_HEADING = 6
_MAX_NAME_CHARACTERS = 200
_HEADERS = ("From", "To", "Cc", "Date", "Subject")
_TEXTS = ("text/plain", "text/html")
_BROKEN_HEADER = (ValueError, IndexError, AttributeError)  # the standard library stumbles on some malformed ones


def parse(source: Path, _progress: Progress) -> ParsedDocument:
    """The message. Raises `ParseFailed` where the file is none."""
    builder = DocumentBuilder()
    try:
        with source.open("rb") as stream:
            message = cast("EmailMessage", email.message_from_binary_file(stream, policy=email.policy.default))
        if not message.keys():
            raise ParseFailed("the file is not an e-mail: it has no headers")
        _Mail(builder).add(message)
    except RecursionError:
        raise ParseFailed("the e-mail is damaged: its parts are nested too deep") from None
    return builder.build(_header(message, "Subject"))


class _Mail:
    """Adds a message to a builder with what is in it, up to the bounds."""

    def __init__(self, builder: DocumentBuilder) -> None:
        self._builder = builder
        self._parts = 0

    def add(self, message: EmailMessage, depth: int = 0) -> None:
        """Append headers, body and names of attachments; then, each under a heading, attached texts and forwarded messages."""
        self._builder.add("\n".join(f"{name}: {value}" for name in _HEADERS if (value := _header(message, name))))
        body = message.get_body(("plain", "html"))
        if body is not None:
            self._add_text(body, _content(body))
        attached: list[tuple[str, EmailMessage, str | EmailMessage]] = []
        names = []
        for part in self._attachments(message, body):
            found = _readable(part, depth)
            if found is None:
                names.append(_name(part))
            else:
                attached.append((_name(part), part, found))
        if names:
            self._builder.add("Attachments: " + ", ".join(names))
        for name, part, found in attached:
            self._builder.add(name, level=min(depth + 1, _DEEPEST_HEADING))
            if isinstance(found, str):
                self._add_text(part, found)
            else:
                self.add(found, depth + 1)

    def _add_text(self, part: EmailMessage, text: str) -> None:
        if part.get_content_subtype() == "html":
            add_html(self._builder, text)
            return
        for paragraph in text.replace("\r\n", "\n").split("\n\n"):
            self._builder.add(paragraph)

    def _attachments(self, message: EmailMessage, body: Message | None) -> Iterator[EmailMessage]:
        for part, alternative in _leaves(message):
            if part is body or (alternative and part.get_content_type() in _TEXTS and not _file_name(part)):
                continue
            if self._parts == MAX_PARTS:
                self._builder.warnings.append(f"the e-mail has more than {MAX_PARTS} parts: the others were left out")
            self._parts += 1
            if self._parts > MAX_PARTS:
                return
            yield part


def _leaves(part: EmailMessage, alternative: bool = False) -> Iterator[tuple[EmailMessage, bool]]:
    """The parts that hold no others, and whether they are one of several versions of the same; a forwarded message is one."""
    if part.get_content_maintype() != "multipart":
        yield part, alternative
        return
    alternative = alternative or part.get_content_subtype() == "alternative"
    for child in part.iter_parts():
        yield from _leaves(cast("EmailMessage", child), alternative)


def _readable(part: EmailMessage, depth: int) -> str | EmailMessage | None:
    """An attached text, a forwarded message, or None for what is only named."""
    if part.get_content_type() in _TEXTS:
        try:
            return _content(part)
        except ParseFailed:
            return None
    message = _forwarded(part)
    return message if message is not None and message.keys() and depth < MAX_DEPTH else None


def _forwarded(part: EmailMessage) -> EmailMessage | None:
    if part.get_content_type() != "message/rfc822" or not part.is_multipart():
        return None
    return cast("EmailMessage", part.get_payload(0))


def _name(part: EmailMessage) -> str:
    """The name of the file, of the forwarded message by its subject, or else the type."""
    message = _forwarded(part)
    if message is not None:
        return f"Forwarded message: {_header(message, 'Subject') or _file_name(part)}".rstrip(": ")
    return _file_name(part) or part.get_content_type()


def _file_name(part: EmailMessage) -> str:
    try:
        return " ".join((part.get_filename() or "").split())[:_MAX_NAME_CHARACTERS]
    except _BROKEN_HEADER:
        return ""


def _header(message: EmailMessage, name: str) -> str:
    try:
        return str(message.get(name, ""))
    except _BROKEN_HEADER:
        return ""


def _content(part: Message) -> str:
    payload = part.get_payload(decode=True)
    return decode(payload, part.get_content_charset() or "") if isinstance(payload, bytes) and payload else ""
