"""Chats and saved searches are listed by their last change as fast as by their making."""

from db.engines import Engine
from db.migrations import m0001_initial
from db.models import Dialog, SearchApp


def up(database: Engine) -> None:
    """Add the indexes that their tables lack."""
    m0001_initial.create(database, [Dialog, SearchApp])
