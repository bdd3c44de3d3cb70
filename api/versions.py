"""The versions of the services behind this server, and whether they are ones that it is tested with."""

import re
from dataclasses import dataclass

from api.parts import Parts
from db.services import system_service
from rag.store.elastic_store import ElasticStore

# the oldest that will do. MySQL: the first with the order of texts that db/engines.py asks for; flat vectors came with Elasticsearch 8.13
OLDEST = {
    "postgresql": (13,),
    "mysql": (8, 0, 17),
    "mariadb": (10, 11),
    "sqlite": (3, 37),
    "elasticsearch": (8, 13),
    "elasticsearch without flat vectors": (8, 12),
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


async def of(parts: Parts) -> list[Version]:
    """Those of the database and, where there is one, the cluster; both answer, or this raises `Unavailable`."""
    name, text = await parts.session.read(system_service.server_version)
    versions = [Version(name, text)]
    if isinstance(parts.store, ElasticStore):
        kind = "elasticsearch" if parts.settings.elasticsearch_vectors == "flat" else "elasticsearch without flat vectors"
        versions.append(Version(kind, await parts.lanes.search.run(parts.store.server_version)))
    return versions
