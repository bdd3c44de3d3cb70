"""`millrace check`: what is misconfigured or broken on this machine, one line each, and how to mend it."""

import asyncio
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.error import URLError
from urllib.request import urlopen

from api.keys import prepare_data_dir
from api.parts import Parts, open_parts
from api.readiness import Readiness
from api.serve import listen
from rag.errors import MillraceError, ProviderRefused, SettingsError
from rag.llm.registry import ModelSpec
from rag.settings import Settings
from rag.types import ChatMessage, ChatOptions

MIN_SQLITE = (3, 37, 0)
LITTLE_SPACE_BYTES = 1 << 30
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


async def check(settings: Settings, environ: Mapping[str, str]) -> int:
    """Look at everything, print what was found, and return the exit code: 1 when something has to be mended."""
    findings = [_sqlite(), await asyncio.to_thread(_port, settings)]
    findings += _model_keys(settings, environ)
    try:
        findings.append(_space(settings))
        findings += await _running_parts(settings, environ)
    except SettingsError as error:
        findings.append(Finding("settings", str(error), "change the setting that is named"))
    except MillraceError as error:
        findings.append(Finding("start", str(error), REMEDIES["database"]))
    for finding in findings:
        print(f"{'MEND' if finding.remedy else 'ok  '}  {finding.subject}: {finding.state}")
        if finding.remedy:
            print(f"      {finding.remedy}")
    return 1 if any(finding.remedy for finding in findings) else 0


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


def _model_keys(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    findings = []
    for variable in sorted({model.api_key_env for model in settings.models if model.api_key_env}):
        missing = not environ.get(variable, "").strip()
        findings.append(Finding(f"variable {variable}", "not set" if missing else "set", f"export {variable}=<the key>" if missing else ""))
    return findings


async def _running_parts(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    keys = {model.api_key_env: environ.get(model.api_key_env, "") for model in settings.models if model.api_key_env}
    # nothing is ingested: a server may be running on the same data directory
    async with open_parts(settings.model_copy(update={"ingest_workers": 0}), keys) as parts:
        findings = [await _model(parts, spec) for kind in ("embedding", "chat") for spec in parts.models.list(kind)]
        states = await Readiness(parts).states()
        for name in ("database", "blobs", "store"):
            findings.append(Finding(name, states[name].reason or "works", "" if states[name].ok else REMEDIES[name]))
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
