"""API key -> tenant. Looked up in the database, remembered for a few seconds."""

import re
import time
from collections import OrderedDict

from db.services import tenant_service
from db.session import Session
from rag.errors import Unauthenticated
from rag.ports import Clock

TOKEN = re.compile(r"ragflow-[A-Za-z0-9_-]{43}")
REMEMBER_SECONDS = 5.0
REMEMBER_KEYS = 4096


class KeyRing:
    """Says which tenant an API key stands for.

    A key is remembered for `REMEMBER_SECONDS`, so a key revoked by another process ends within that time; `forget` ends it at
    once in this one. Unknown keys are not remembered.
    """

    def __init__(self, session: Session, clock: Clock = time.monotonic) -> None:
        self._session = session
        self._clock = clock
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()

    async def tenant_of(self, authorization: str | None) -> str:
        """The id of the tenant whose key the `Authorization` header holds. Raises `Unauthenticated`."""
        token = token_of(authorization)
        known = self._known.get(token)
        if known is not None and known[1] > self._clock():
            return known[0]
        asked_at = self._clock()
        record = await self._session.read(tenant_service.find_key, token)
        if record is None:
            self.forget(token)
            raise Unauthenticated("the API key is not valid")
        self._remember(token, record.tenant_id, asked_at)
        return record.tenant_id

    def remembered(self, authorization: str | None) -> str:
        """The tenant of a key that was used of late, "" for any other: costs nothing, promises nothing."""
        try:
            return self._known.get(token_of(authorization), ("", 0.0))[0]
        except Unauthenticated:
            return ""

    def forget(self, token: str) -> None:
        """Look the key up again at its next use."""
        self._known.pop(token, None)

    def _remember(self, token: str, tenant_id: str, asked_at: float) -> None:
        self._known[token] = (tenant_id, asked_at + REMEMBER_SECONDS)
        self._known.move_to_end(token)
        while len(self._known) > REMEMBER_KEYS:
            self._known.popitem(last=False)


def token_of(authorization: str | None) -> str:
    """The key inside an `Authorization` header; one without `Bearer ` is taken whole. Raises `Unauthenticated`."""
    value = (authorization or "").strip()
    if value[:7].lower() == "bearer ":
        value = value[7:].strip()
    if TOKEN.fullmatch(value) is None:
        raise Unauthenticated("no API key was given")
    return value
