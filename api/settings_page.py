"""`docs/settings.md`, made from the declarations in rag/settings.py: `python -m api.settings_page > docs/settings.md`."""

import os
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rag.settings import FILE_ONLY, PREFIX, ModelSettings, Settings

HEAD = f"""\
# Settings

Made from `rag/settings.py` by `make docs`; do not edit.

A setting is given in the environment (`{PREFIX}PORT=9000`) or in `millrace.toml` (`port = 9000`) in the directory the server is
started in, or in the file that `{PREFIX}CONFIG` names. The environment wins. An unknown name or a malformed value stops the start
with one line. `millrace check` says what else is wrong.
"""

MODELS_HEAD = """
## Models

Each `[[models]]` table of the file adds a model that callers name as `<name>@<provider>`. A key is never written down: `api_key_env`
names the environment variable that holds it.

```toml
[[models]]
name = "gpt-4o-mini"
provider = "OpenAI"
kind = "chat"
base_url = "https://api.openai.com/v1"
api_key_env = "OPENAI_API_KEY"
default = true

[[models]]
name = "bge-small-en-v1.5"
provider = "Local"
kind = "embedding"
path = "/models/bge-small-en-v1.5"

[aliases]
"BAAI/bge-m3@Builtin" = "all-MiniLM-L6-v2@Local"
```

| key | default | meaning |
|---|---|---|
"""

# defaults that depend on the machine
BY_CORES = {
    "model_threads": "the number of cores",
    "rerank_threads": "the number of cores - 1",
    "ingest_model_threads": "the number of cores - 1",
}


def settings_page() -> str:
    """The whole page."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | {_kind(field)} | {_default(name, field)} | {_meaning(field)} |"
        for name, field in Settings.model_fields.items()
        if name not in FILE_ONLY
    ]
    table = "\n| variable | value | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    return HEAD + table + MODELS_HEAD + _model_rows(ModelSettings)


def _model_rows(model: type[BaseModel]) -> str:
    return "".join(f"| `{name}` | {_default(name, field)} | {_meaning(field)} |\n" for name, field in model.model_fields.items())


def _kind(field: FieldInfo) -> str:
    words = [word for kind in _alternatives(field.annotation) for word in _words(kind)]
    return ", ".join(words)


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for kind in get_args(annotation) if kind is not type(None)]
    return [annotation]


def _words(kind: Any) -> list[str]:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return [f"`{choice}`" for choice in get_args(kind)]
    return [{bool: "true, false", int: "integer", float: "number", Path: "path", str: "text"}.get(kind, "text")]


def _default(name: str, field: FieldInfo) -> str:
    if name in BY_CORES:
        return BY_CORES[name]
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "-"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{os.fspath(default) if isinstance(default, Path) else default}`"


def _meaning(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    unit = f" ({extra['unit']})" if isinstance(extra, dict) and "unit" in extra else ""
    return f"{field.description}{unit}".replace("|", "\\|")


if __name__ == "__main__":
    print(settings_page(), end="")
