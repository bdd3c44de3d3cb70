"""Every dependency is imported by the product and has its reason in docs/adr/0001-dependencies.md."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.house.test_imports import MODULES, ROOT, imports

# where a package's module has another name than the package
MODULE_NAMES = {
    "charset-normalizer": "charset_normalizer",
    "pystemmer": "Stemmer",
    "pymysql": "pymysql",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}


def declared() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [re.split(r"[<>=~! \[]", line, maxsplit=1)[0] for line in project["dependencies"]]


@pytest.fixture(scope="module")
def imported() -> set[str]:
    return {module.split(".")[0] for path in MODULES for module in imports(Path(path))}


@pytest.mark.parametrize("package", declared())
def test_a_dependency_is_imported(package: str, imported: set[str]) -> None:
    assert MODULE_NAMES.get(package.lower(), package.replace("-", "_")) in imported


def test_the_reasons_are_those_of_the_dependencies() -> None:
    page = (ROOT / "docs/adr/0001-dependencies.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE), key=str.lower) == sorted(declared(), key=str.lower)
