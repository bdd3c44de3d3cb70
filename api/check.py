"""`millrace check`: what is misconfigured or broken in this deployment, seen from this machine, one line each, and how to mend it."""

import asyncio
import os
import platform
import resource
import shutil
import sqlite3
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from api import orphans, versions
from api.keys import prepare_data_dir
from api.listening import KEY_FILE, listen
from api.parts import Parts, open_parts
from api.readiness import Readiness
from api.versions import Version
from db.services import system_service
from rag.errors import MillraceError, ProviderRefused, SettingsError
from rag.llm.registry import ModelSpec
from rag.ports import PROBES
from rag.settings import Settings
from rag.types import ChatMessage, ChatOptions

MIN_SQLITE = (3, 37, 0)
LITTLE_SPACE_BYTES = 1 << 30
FEW_FILES = 4096
CLOCKS_APART_SECONDS = 5.0
SHOWN = 10
MODEL_SECONDS = 30.0
PROBE_TEXT = "Say yes."
REMEDIES = {
    "database": "look at the file millrace.sqlite3 in the data directory: is the disk full, is it writable?",
    "blobs": "look at the folder blobs in the data directory: is the disk full, is it writable?",
    "store": "look at the folder chunks in the data directory: is the disk full, is it writable?",
    "embedder": "look at the embedding model in millrace.toml, or leave it out to use the built-in one",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `remedy` is empty when it is well."""

    subject: str
    state: str
    remedy: str = ""


async def check(settings: Settings, environ: Mapping[str, str], *, files: bool = False, repair: bool = False) -> int:
    """Look at everything, print what was found, and return the exit code: 1 when something has to be mended.

    `files` compares all stored files with all documents, too; `repair` does that and removes the files that nobody owns.
    """
    findings = [_version(), _sqlite(), _open_files(), await asyncio.to_thread(_port, settings)]
    findings += _model_keys(settings, environ)
    try:
        findings.append(_space(settings))
        findings += _permissions(settings)
        findings += await _running_parts(settings, environ, files=files, repair=repair)
    except SettingsError as error:
        findings.append(Finding("settings", str(error), "change the setting that is named"))
    except MillraceError as error:
        findings.append(Finding("start", str(error), _remedy("database", settings)))
    for finding in findings:
        print(f"{'MEND' if finding.remedy else 'ok  '}  {finding.subject}: {finding.state}")
        if finding.remedy:
            print(f"      {finding.remedy}")
    return 1 if any(finding.remedy for finding in findings) else 0


def _version() -> Finding:
    return Finding("millrace", f"{version('millrace')} on Python {platform.python_version()}")


def _open_files() -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    few = hard != resource.RLIM_INFINITY and hard < FEW_FILES
    state = "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}"
    return Finding("open files", state, f"allow {FEW_FILES} or more: each connection is one (LimitNOFILE, ulimit -n)" if few else "")


def _sqlite() -> Finding:
    wanted = ".".join(map(str, MIN_SQLITE))
    remedy = "" if sqlite3.sqlite_version_info >= MIN_SQLITE else f"use a Python that is built with SQLite {wanted} or newer"
    return Finding("sqlite", sqlite3.sqlite_version, remedy)


def _port(settings: Settings) -> Finding:
    subject = f"{settings.host}:{settings.port}"
    try:
        listen(settings.host, settings.port).close()
    except SettingsError as error:
        if _answers(settings):
            return Finding(subject, "a server answers there")
        return Finding(subject, str(error), "stop what listens there, or choose another address with MILLRACE_HOST and MILLRACE_PORT")
    return Finding(subject, "free")


def _answers(settings: Settings) -> bool:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        with urlopen(f"http://{host}:{settings.port}/healthz", timeout=3) as reply:
            return reply.status == 200
    except (URLError, OSError):
        return False


def _space(settings: Settings) -> Finding:
    path = prepare_data_dir(settings.data_dir)
    free = shutil.disk_usage(path).free
    remedy = "" if free >= LITTLE_SPACE_BYTES else "make room on that disk, or set MILLRACE_DATA_DIR to another one"
    return Finding(f"data directory {path}", f"{free / (1 << 30):.1f} GiB free", remedy)


def _permissions(settings: Settings) -> list[Finding]:
    """Whether others on this machine can read what is secret."""
    findings = []
    for path, mode in ((settings.data_dir.absolute(), 0o700), (settings.data_dir.absolute() / KEY_FILE, 0o600)):
        if path.exists():
            findings.append(_privacy(path, mode))
    return findings


def _privacy(path: Path, mode: int) -> Finding:
    found = path.stat()
    subject = f"permissions of {path.name}"
    if found.st_uid != os.geteuid():
        return Finding(subject, "another user owns it", f"run Millrace as that user, or chown {path}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        return Finding(subject, f"others on this machine can read it ({stat.S_IMODE(found.st_mode):04o})", f"chmod {mode:o} {path}")
    return Finding(subject, f"{stat.S_IMODE(found.st_mode):04o}")


def _model_keys(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    findings = []
    for variable in sorted({model.api_key_env for model in settings.models if model.api_key_env}):
        missing = not environ.get(variable, "").strip()
        findings.append(Finding(f"variable {variable}", "not set" if missing else "set", f"export {variable}=<the key>" if missing else ""))
    return findings


async def _running_parts(settings: Settings, environ: Mapping[str, str], *, files: bool, repair: bool) -> list[Finding]:
    keys = {model.api_key_env: environ.get(model.api_key_env, "") for model in settings.models if model.api_key_env}
    # nothing is ingested: a server may be running on the same data directory
    async with open_parts(settings.model_copy(update={"ingest_workers": 0}), keys) as parts:
        kinds = ("embedding", "chat")
        findings = [await _model(parts, spec) for kind in kinds for spec in parts.models.list(kind)]  # type: ignore[arg-type]
        states = await Readiness(parts).states()
        for name in ("database", "blobs", "store"):
            state = states[name]
            findings.append(Finding(_name_of(name, settings), state.reason or "works", "" if state.ok else _remedy(name, settings)))
        if states["database"].ok and states["store"].ok:
            findings += [_age(found) for found in await versions.of(parts)]
        if states["database"].ok:
            findings += [await _clock(parts)]
        if settings.redis_url and parts.memory is not None:
            health = await parts.memory.cache.health()
            remedy = "" if health["status"] == "green" else "does the server run, and is MILLRACE_REDIS_URL right?"
            findings += [Finding("redis", health.get("error") or "works", remedy)]
        if (files or repair) and states["database"].ok and states["blobs"].ok:
            findings += await _files(parts, repair=repair)
    return findings


def _age(found: Version) -> Finding:
    remedy = "" if found.will_do else f"use {found.name} {found.oldest} or newer"
    shown = f"{found.text} ({found.lacks})" if found.lacks else found.text or "it does not say"
    return Finding(f"version of {found.name}", shown, remedy)


def _name_of(part: str, settings: Settings) -> str:
    """The part, and what it is here."""
    kinds = {
        "database": settings.database_url.partition("://")[0] or "sqlite",
        "blobs": "s3" if settings.blob_url else "folder",
        "store": settings.store,
    }
    return f"{part} ({kinds[part]})"


def _remedy(part: str, settings: Settings) -> str:
    """What to look at when the part fails: another thing where it is a service of its own."""
    remote = {
        "database": settings.database_url and "does the server run, and is MILLRACE_DATABASE_URL right? see its log and docs/operations",
        "blobs": settings.blob_url and "does the service run, is MILLRACE_BLOB_URL right, do the AWS_ variables hold keys that may write?",
        "store": settings.store != "embedded" and "does the cluster run, are MILLRACE_ELASTICSEARCH_HOSTS and its credentials right?",
    }
    return str(remote[part] or REMEDIES[part])


async def _clock(parts: Parts) -> Finding:
    """Leases go by the database's clock, keys and dates by ours."""
    asked = time.time()
    theirs = await parts.session.read(system_service.clock_ms) / 1000
    apart = theirs - (asked + time.time()) / 2
    state = (
        f"{abs(apart):.1f} seconds {'behind' if apart > 0 else 'before'} the database's" if abs(apart) >= 0.1 else "that of the database"
    )
    return Finding("clock", state, "keep both machines' clocks right (chrony, ntpd)" if abs(apart) > CLOCKS_APART_SECONDS else "")


async def _files(parts: Parts, *, repair: bool) -> list[Finding]:
    strays = await orphans.find(parts)
    nobodys = [key for key in strays.files if not key.startswith(PROBES)]
    if repair:
        await orphans.remove(parts, strays.files)
    if nobodys and repair:
        findings = [Finding("files", f"{strays.checked} looked at, {len(nobodys)} that nobody owned were removed")]
    elif nobodys:
        findings = [Finding("files", f"{len(nobodys)} of {strays.checked} belong to no document", "millrace check --repair removes them")]
    else:
        findings = [Finding("files", f"{strays.checked} looked at, each has its document")]
    if strays.documents:
        shown = ", ".join(strays.documents[:SHOWN]) + (" …" if len(strays.documents) > SHOWN else "")
        remedy = f"restore the files from a backup, or delete the documents and upload them again: {shown}"
        findings.append(Finding("documents", f"{len(strays.documents)} have no file", remedy))
    return findings


async def _model(parts: Parts, spec: ModelSpec) -> Finding:
    subject = f"{spec.kind} model {spec.identifier}"
    try:
        async with asyncio.timeout(MODEL_SECONDS):
            await _call(parts, spec)
    except TimeoutError:
        return Finding(subject, f"no answer within {MODEL_SECONDS:g} seconds", "look at its base_url")
    except ProviderRefused as error:
        return Finding(subject, str(error), "look at its name, base_url and api_key_env in millrace.toml")
    except MillraceError as error:
        return Finding(subject, str(error), "look at its base_url or path in millrace.toml, and whether the endpoint runs")
    return Finding(subject, "answers")


async def _call(parts: Parts, spec: ModelSpec) -> None:
    if spec.kind == "embedding":
        await parts.models.embedder(spec.identifier).embed_query(PROBE_TEXT)
        return
    model = parts.models.chat(spec.identifier)
    if model is not None:
        await model.complete([ChatMessage("user", PROBE_TEXT)], ChatOptions(max_tokens=8))
