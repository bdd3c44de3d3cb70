"""Keeps the import table of docs/architecture.md: who may import whom, and which third party lives behind which door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUNDATION = {
    f"rag.{name}" for name in ("cores", "errors", "deadline", "settings", "threads", "types", "ports", "tracing", "stages", "breaker")
}

# package -> packages of ours that it may import beside the foundation and itself
MAY_IMPORT = {
    "api": {"api", "db", "rag.flow", "rag.ingest", "rag.sources", "rag.nlp", "rag.llm", "rag.store", "rag.cache"},
    "rag.flow": {"rag.sources", "rag.nlp"},
    "rag.ingest": {"rag.sources", "rag.nlp"},
    "rag.sources": {"rag.nlp"},
    "rag.nlp": set(),
    "rag.llm": set(),
    "rag.store": set(),
    "rag.cache": set(),
    "db": set(),
}

# third party -> the files or packages that may import it
FENCES = {
    "quart": ("api/",),
    "hypercorn": ("api/",),
    "peewee": ("db/",),
    "playhouse": ("db/",),
    "psycopg": ("db/engines.py",),
    "pymysql": ("db/engines.py",),
    "elasticsearch": ("rag/store/elastic",),
    "elastic_transport": ("rag/store/elastic_node.py",),
    "httpx": ("api/parts.py", "rag/llm/transport.py"),
    "httpx_aiohttp": ("rag/llm/transport.py",),
    "aiohttp": ("rag/llm/transport.py",),
    "redis": ("rag/cache/",),
    "obstore": ("rag/store/",),
    "opentelemetry": ("rag/tracing.py",),
    "onnxruntime": ("rag/llm/",),
    "tantivy": ("rag/store/",),
}

MODULES = sorted(path for top in ("api", "rag", "db") for path in (ROOT / top).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "rag" else parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_the_table_allows(path: Path) -> None:
    relative = path.relative_to(ROOT)
    own = package(".".join(relative.with_suffix("").parts))
    for module in imports(path):
        top = module.split(".")[0]
        if top in FENCES:
            assert str(relative).startswith(FENCES[top]), f"{relative} imports {module}"
        if top not in ("api", "rag", "db") or own == "rag":
            continue
        if own in FOUNDATION:
            assert package(module) in FOUNDATION, f"{relative} is foundation and imports {module}"
        else:
            assert package(module) in FOUNDATION | MAY_IMPORT[own] | {own}, f"{relative} imports {module}"


def test_the_environment_is_read_in_one_place() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert readers <= {"api/__main__.py"}
