"""The versions of the services behind this server, and whether they are ones that it is tested with."""

import re
from dataclasses import dataclass

from api.parts import Parts
from db.services import system_service
from rag.store.elastic_store import ElasticStore

# the oldest that will do. MySQL: the first with the order of texts that db/engines.py asks for
FLAT_VECTORS = (8, 13)  # the first Elasticsearch that has them
OLDEST = {
    "postgresql": (13,),
    "mysql": (8, 0, 17),
    "mariadb": (10, 11),
    "sqlite": (3, 37),
    "elasticsearch": (8, 12),
    "elasticsearch with flat vectors": FLAT_VECTORS,
}


@dataclass(frozen=True, slots=True)
class Version:
    """`name` is a key of `OLDEST`, `text` what the service calls its version."""

    name: str
    text: str

    @property
    def number(self) -> tuple[int, ...]:
        """The first run of numbers: (15, 8) of "15.8 (Debian 15.8-1)"."""
        found = re.search(r"\d+(\.\d+)*", self.text)
        return tuple(int(part) for part in found[0].split(".")) if found else ()

    @property
    def oldest(self) -> str:
        """The oldest version that will do."""
        return ".".join(map(str, OLDEST[self.name]))

    @property
    def will_do(self) -> bool:
        """Whether it is that one or newer."""
        return self.number >= OLDEST[self.name]

    @property
    def lacks(self) -> str:
        """What one that will do has not, and what takes its place; "" where nothing is missing."""
        if self.name == "elasticsearch" and self.will_do and self.number < FLAT_VECTORS:
            return "without flat vectors, which came with 8.13: searches of new indexes are approximate"
        return ""


async def of(parts: Parts) -> list[Version]:
    """Those of the database and, where there is one, the cluster; both answer, or this raises `Unavailable`."""
    name, text = await parts.session.read(system_service.server_version)
    versions = [Version(name, text)]
    if isinstance(parts.store, ElasticStore):
        kind = "elasticsearch with flat vectors" if parts.settings.elasticsearch_vectors == "flat" else "elasticsearch"
        versions.append(Version(kind, await parts.lanes.search.run(parts.store.server_version)))
    return versions
