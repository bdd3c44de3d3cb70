"""The documentation that can be checked is right."""

import re
import tomllib
from pathlib import Path

import pytest

from api.schema.parser_config import ParserConfig
from api.settings_page import settings_page
from rag.errors import MillraceError
from rag.nlp.split import STRATEGIES
from rag.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "load").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


def test_the_page_of_settings_is_current() -> None:
    assert (ROOT / "docs" / "settings.md").read_text("utf-8") == settings_page(), "run `make docs`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_is_for(name: str) -> None:
    assert Settings.model_fields[name].description


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = [target for target in LINK.findall(page.read_text("utf-8")) if not (page.parent / target).exists()]
    assert broken == []


def subclasses(error: type[Exception]) -> set[type[Exception]]:
    return {error}.union(*(subclasses(child) for child in error.__subclasses__()))


def test_every_error_of_the_tree_is_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    tree = {error.__name__ for error in subclasses(MillraceError) if error.__module__ == "rag.errors"} - {"MillraceError"}
    assert {name for name in tree if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_split_strategy_is_explained_where_people_look(strategy: str) -> None:
    page = (ROOT / "docs" / "splitting.md").read_text("utf-8")
    assert f"| `{strategy}` |" in page
    assert ", ".join(STRATEGIES) in page, "the message for a wrong one"
    assert f"`{strategy}`" in ParserConfig.model_json_schema()["properties"]["ext"]["description"]


@pytest.mark.parametrize("name", tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"])
def test_every_dependency_has_its_reason_written_down(name: str) -> None:
    reasons = (ROOT / "docs" / "adr" / "0001-dependencies.md").read_text("utf-8")
    package = re.split(r"[\[>=<]", name)[0]
    assert f"`{package}`" in reasons
