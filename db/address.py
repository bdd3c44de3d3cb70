"""Where the database is: the setting `database_url`, read and judged. What it shows of itself never holds the password."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from rag.errors import SettingsError

DATABASE_FILE = "millrace.sqlite3"
SHAPE = "database_url must look like postgresql://user@host:5432/name or mysql://user@host:3306/name"

Kind = Literal["sqlite", "postgresql", "mysql"]

KINDS: dict[str, tuple[Kind, int]] = {
    "postgresql": ("postgresql", 5432),
    "postgres": ("postgresql", 5432),
    "mysql": ("mysql", 3306),
    "mariadb": ("mysql", 3306),
}
OPTIONS = {"postgresql": ("sslmode", "sslrootcert", "sslcert", "sslkey"), "mysql": ("ssl_ca", "ssl_cert", "ssl_key")}
"""What may follow the `?`: how the connection is encrypted, by the names that libpq and PyMySQL give it."""


@dataclass(frozen=True, slots=True)
class Address:
    """A database: a SQLite file (`path`), or a name on a server."""

    kind: Kind
    path: Path = Path()
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    name: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """For people and logs."""
        return f"sqlite file {self.path}" if self.kind == "sqlite" else f"{self.kind}://{self.user}@{self.host}:{self.port}/{self.name}"


def address_of(url: str, data_dir: Path, password: str = "") -> Address:
    """The address that the settings give; "" is the file in the data directory. `password` counts where the URL has none.

    Raises `SettingsError`.
    """
    if not url:
        return Address("sqlite", path=data_dir / DATABASE_FILE)
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise SettingsError(f"{SHAPE}: its host or port is malformed") from None
    if parts.scheme not in KINDS:
        raise SettingsError(f"{SHAPE}: it begins with none of {', '.join(KINDS)}")
    kind, default_port = KINDS[parts.scheme]
    name = unquote(parts.path.removeprefix("/"))
    if not parts.hostname or not parts.username or not name or "/" in name:
        missing = "host" if not parts.hostname else "user" if not parts.username else "database's name"
        raise SettingsError(f"{SHAPE}: the {missing} is missing or malformed")
    options = parse_qsl(parts.query, keep_blank_values=True)
    for option, _ in options:
        if option not in OPTIONS[kind]:
            raise SettingsError(f"database_url has an unknown option; known are {', '.join(OPTIONS[kind])}")
    return Address(
        kind,
        host=parts.hostname,
        port=port or default_port,
        user=unquote(parts.username),
        password=unquote(parts.password) if parts.password is not None else password,
        name=name,
        options=tuple(options),
    )
