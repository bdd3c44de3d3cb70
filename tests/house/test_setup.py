"""bin/setup on machines whose Python lacks something, with a Python that only pretends."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = '#!/bin/sh\\ncase "$1" in --version) echo "uv 0.13.8" ;; *) echo "synced by $0" ;; esac\\n'
PYTHON = f"""#!/bin/sh
has() {{ case " $HAS " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }}
installed() {{ mkdir -p .uv/bin && printf '{UV}' >.uv/bin/uv && chmod +x .uv/bin/uv; }}
case "$*" in
    *"print(sys.executable)"*) echo "$0" ;;
    *"sys.version_info"*) ;;
    "-c import ensurepip") has ensurepip ;;
    "-m venv .uv") has ensurepip && mkdir -p .uv/bin && cp "$0" .uv/bin/python ;;
    "-m pip --version") has pip ;;
    "-m pip install"*" --require-hashes -r bin/uv.txt --target .uv") has pip && installed ;;
    "-m pip install"*" --require-hashes -r bin/uv.txt") case "$0" in .uv/bin/*) installed ;; *) exit 1 ;; esac ;;
    *) exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing set up, and below it `programs` with a Python."""
    shutil.copytree(ROOT / "bin", tmp_path / "bin")
    python = tmp_path / "programs" / "python3"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def setup(checkout: Path, has: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": f"{checkout / 'programs'}:{os.defpath}", "HAS": has}
    return subprocess.run([checkout / "bin" / "setup", "serve"], env=environ, capture_output=True, text=True, cwd=checkout)


@pytest.mark.skipif(shutil.which("uv", path=os.defpath) is not None, reason="uv is installed for the whole machine")
@pytest.mark.parametrize("has", ["ensurepip pip", "ensurepip", "pip"])
def test_uv_is_installed_with_ensurepip_or_else_with_a_pip_that_is_there(checkout: Path, has: str) -> None:
    done = setup(checkout, has)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"synced by {checkout}/.uv/bin/uv\n", "")


@pytest.mark.skipif(shutil.which("uv", path=os.defpath) is not None, reason="uv is installed for the whole machine")
def test_a_python_without_either_is_told_what_to_install(checkout: Path) -> None:
    done = setup(checkout, "")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "setup: Python has neither ensurepip nor pip; install one (Debian, Ubuntu: apt install python3-venv)\n"
