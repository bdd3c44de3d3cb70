"""E-mail (RFC 5322, MIME): who, when, about what, the body, and the names of what is attached."""

import email
import email.policy
from email.message import EmailMessage, Message
from pathlib import Path
from typing import cast

from rag.errors import ParseFailed
from rag.ingest.parsers.html import add_html
from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder, decode
from rag.types import ParsedDocument

_HEADERS = ("From", "To", "Cc", "Date", "Subject")


def parse(source: Path, _progress: Progress) -> ParsedDocument:
    """The message. Raises `ParseFailed` where the file is none."""
    with source.open("rb") as stream:
        message = cast("EmailMessage", email.message_from_binary_file(stream, policy=email.policy.default))
    if not message.keys():
        raise ParseFailed("the file is not an e-mail: it has no headers")
    builder = DocumentBuilder()
    subject = _header(message, "Subject")
    builder.add("\n".join(f"{name}: {value}" for name in _HEADERS if (value := _header(message, name))))
    body = message.get_body(("plain", "html"))
    if body is not None:
        if body.get_content_subtype() == "html":
            add_html(builder, _content(body))
        else:
            for paragraph in _content(body).replace("\r\n", "\n").split("\n\n"):
                builder.add(paragraph)
    names = [name for part in message.iter_attachments() if (name := part.get_filename())]
    if names:
        builder.add("Attachments: " + ", ".join(names))
    return builder.build(subject)


def _header(message: EmailMessage, name: str) -> str:
    try:
        return str(message.get(name, ""))
    except (ValueError, IndexError, AttributeError):  # the standard library stumbles on some malformed ones
        return ""


def _content(part: Message) -> str:
    payload = part.get_payload(decode=True)
    return decode(payload, part.get_content_charset() or "") if isinstance(payload, bytes) and payload else ""
