"""How a parser tells where it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`progress("page", 12, 80)`: at the 12th of 80 pages. Cheap enough to be called for every one."""


def silent(_what: str, _done: int, _of: int) -> None:
    """Tells nobody."""
