"""The README's commands, copied from the README and run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import needs
from tests.e2e.server_process import ROOT, ServerProcess

README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RAGFLOW_SDK = ROOT / ".cache" / "ragflow-sdk"
SECONDS = 30


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(README) if found == language]


@pytest.fixture(scope="module")
def folder(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout after `make serve`."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "data").symlink_to(server.data_dir)
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


@pytest.fixture(scope="module")
def shell_output(server: ServerProcess, folder: Path) -> str:
    """What the shell blocks print, pasted one after the other into one shell."""
    return run(["bash", "-e", "-c", "\n".join(blocks("bash"))], server, folder)


def run(command: list[str], server: ServerProcess, folder: Path) -> str:
    *head, text = command
    done = subprocess.run(
        [*head, text.replace("http://127.0.0.1:9380", server.url)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(RAGFLOW_SDK)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_shell_blocks_upload_search_and_chat(shell_output: str) -> None:
    assert '"code":0' in shell_output
    assert "Nendrum" in shell_output, "the search finds the oldest mill"
    frames = [line for line in shell_output.splitlines() if line.startswith("data:")]
    assert frames, "the chat streams"
    assert "Steam mills" in "".join(frames)
    assert "[ID:" in "".join(frames)
    assert frames[-1] == 'data:{"code":0,"message":"","data":true}'


def test_the_ragflow_sdk_block_runs(server: ServerProcess, folder: Path) -> None:
    if not RAGFLOW_SDK.exists():
        needs("ragflow-sdk; run `bin/setup test`")
    (block,) = (text for text in blocks("python") if "ragflow_sdk" in text)
    printed = run([sys.executable, "-W", "error", "-c", block], server, folder)
    assert "120 revolutions" in printed
    assert "two to three weeks" in printed


def test_the_openai_block_runs(server: ServerProcess, folder: Path, shell_output: str) -> None:
    (block,) = (text for text in blocks("python") if "openai" in text)
    printed = run([sys.executable, "-c", block], server, folder)
    assert "Woodbridge" in printed


def test_the_banner_prints_a_request_that_works_when_pasted(start) -> None:
    server = start(ready=False)
    assert server.process.stdout is not None
    lines = []
    for line in server.process.stdout:
        lines.append(line)
        if "-d '" in line:
            break
    text = "".join(lines)
    done = subprocess.run(["bash", "-c", text[text.index("curl") :]], capture_output=True, text=True, timeout=30)
    assert '"code":0' in done.stdout, done
    assert "my first dataset" in done.stdout


def test_the_settings_block_is_understood(tmp_path: Path) -> None:
    (toml,) = blocks("toml")
    (tmp_path / "millrace.toml").write_text(toml)
    done = subprocess.run(
        [sys.executable, "-c", "import os, pathlib; from rag.settings import load; print(load({}, pathlib.Path.cwd()).models)"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "llama3.1" in done.stdout, done.stderr
