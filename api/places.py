"""Where an installation keeps its data, in words that are the same for all its servers and hold no secret."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from db.address import address_of
from rag.settings import Settings

NAMES = ("database", "chunks", "files")


@dataclass(frozen=True, slots=True)
class Places:
    """The three places. Two installations with the same place share it.

    A cluster of Elasticsearch goes by its index prefix, and not by its hosts: servers may know it by different names.
    """

    database: str
    chunks: str
    files: str

    @property
    def all(self) -> list[str]:
        """The places in the order of `NAMES`."""
        return [self.database, self.chunks, self.files]

    @property
    def movable(self) -> frozenset[str]:
        """The places that the database speaks of when it holds writes."""
        return frozenset((self.chunks, self.files))

    def differing(self, other: "Places") -> tuple[str, ...]:
        """The names of the places that are not the same."""
        return tuple(name for name in NAMES if getattr(self, name) != getattr(other, name))


def places_of(settings: Settings) -> Places:
    """The places that the settings name. Raises `SettingsError`."""
    data_dir = settings.data_dir.absolute()
    address = address_of(settings.database_url, data_dir)
    chunks = _folder(data_dir / "chunks") if settings.store == "embedded" else f"elasticsearch {settings.elasticsearch_index_prefix}*"
    files = f"{settings.blob_url.rstrip('/')} {urlsplit(settings.blob_endpoint).netloc}".strip() if settings.blob_url else ""
    return Places(str(address), chunks, files or _folder(data_dir / "blobs"))


def kinds_of(settings: Settings) -> dict[str, str]:
    """What each place is, for people."""
    return {
        "database": address_of(settings.database_url, settings.data_dir).kind,
        "chunks": settings.store,
        "files": "s3" if settings.blob_url else "folder",
    }


def _folder(path: Path) -> str:
    return f"folder {path.resolve()}"
