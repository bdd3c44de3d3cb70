"""The page that shows the API, in a real browser."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.e2e.conftest import needs
from tests.e2e.server_process import ServerProcess

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def page(server: ServerProcess) -> Iterator[Page]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        needs("a Chromium browser (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith(server.url) else problems.append(f"asks {request.url}"))
        page.goto(f"{server.url}/docs")
        page.get_by_text("/api/v1/retrieval").first.wait_for()
        yield page
        assert problems == []
        browser.close()


def test_the_page_shows_every_route_of_the_document(server: ServerProcess, page: Page) -> None:
    text = page.inner_text("body")
    for path in ("/api/v1/datasets", "/api/v1/retrieval", "/api/v1/chat/completions", "/v1/chat/completions", "/readyz"):
        assert path in text


def test_the_page_needs_no_other_host(server: ServerProcess, page: Page) -> None:
    sources = page.eval_on_selector_all("script[src], link[href]", "nodes => nodes.map(node => node.src || node.href)")
    assert [source for source in sources if not source.startswith((server.url, "data:"))] == []
