"""Tenants and their API keys."""

import secrets
from dataclasses import dataclass

from db.dialect import locked
from db.models import ApiKey, Tenant


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """A tenant."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key with its beta token; times in milliseconds since the epoch."""

    tenant_id: str
    token: str
    beta: str
    create_time: int
    update_time: int


def ensure_tenant(name: str) -> TenantRecord:
    """The tenant of that name, made if there is none."""
    row, _ = Tenant.get_or_create(name=name)
    return TenantRecord(row.id, row.name)


def hold(name: str) -> TenantRecord:
    """`ensure_tenant`; others that hold the same tenant wait until the transaction ends."""
    tenant = ensure_tenant(name)
    list(locked(Tenant.select(Tenant.id).where(Tenant.id == tenant.id)))
    return tenant


def get_tenant(tenant_id: str) -> TenantRecord | None:
    """The tenant, or None."""
    row = Tenant.get_or_none(Tenant.id == tenant_id)
    return None if row is None else TenantRecord(row.id, row.name)


def list_tenants() -> list[TenantRecord]:
    """All tenants by name."""
    return [TenantRecord(row.id, row.name) for row in Tenant.select().order_by(Tenant.name)]


def create_key(tenant_id: str) -> KeyRecord:
    """A new key: `ragflow-` and 43 url-safe characters (32 random bytes), with a beta token of 32 characters."""
    row = ApiKey.create(tenant_id=tenant_id, token=f"ragflow-{secrets.token_urlsafe(32)}", beta=secrets.token_urlsafe(24))
    return _record(row)


def list_keys(tenant_id: str) -> list[KeyRecord]:
    """The tenant's keys, newest first."""
    rows = ApiKey.select().where(ApiKey.tenant_id == tenant_id).order_by(ApiKey.create_time.desc(), ApiKey.id)
    return [_record(row) for row in rows]


def delete_key(tenant_id: str, token: str) -> bool:
    """Whether the tenant had that key; it is gone now."""
    return ApiKey.delete().where(ApiKey.tenant_id == tenant_id, ApiKey.token == token).execute() > 0


def find_key(token: str) -> KeyRecord | None:
    """The key whose token this is, or None."""
    row = ApiKey.get_or_none(ApiKey.token == token)
    return None if row is None else _record(row)


def _record(row: ApiKey) -> KeyRecord:
    return KeyRecord(row.tenant_id, row.token, row.beta, row.create_time, row.update_time)
