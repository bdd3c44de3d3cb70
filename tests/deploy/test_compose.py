"""docker-compose.yml and the Dockerfile, read without a container engine: what they name exists, and nothing is left open."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.__main__ import _parser
from rag.settings import FILE_ONLY, PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
JOBS = [name for name, service in SERVICES.items() if "restart" not in service]
OURS = [name for name, service in SERVICES.items() if "build" in service]
SECRET = re.compile(r"\$\{(\w+):\?[^}]+\}")
SECRET_NAME = re.compile(r"PASSWORD|SECRET|ACCESS_KEY")
PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9.-]+)?")


def settings_of(service: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in service.get("environment", {}).items() if name.startswith(PREFIX)}


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned(name: str) -> None:
    assert PINNED.fullmatch(SERVICES[name]["image"]), SERVICES[name]["image"]


def test_the_dockerfiles_base_is_pinned_and_its_last_user_is_not_root() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    assert all(PINNED.fullmatch(base) for base in bases)
    assert re.findall(r"^USER (\w+)", DOCKERFILE, re.MULTILINE)[-1] not in ("root", "0")


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in JOBS])
def test_a_service_has_a_health_check_and_starts_again(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert "healthcheck" in SERVICES[name] or (name in OURS and "HEALTHCHECK" in DOCKERFILE)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_limits(name: str) -> None:
    assert set(SERVICES[name]["deploy"]["resources"]["limits"]) >= {"cpus", "memory"}


@pytest.mark.parametrize("name", OURS)
def test_every_setting_named_exists_and_is_understood(name: str) -> None:
    given = settings_of(SERVICES[name])
    assert given
    values = {}
    for variable, value in given.items():
        setting = variable.removeprefix(PREFIX).lower()
        assert setting in Settings.model_fields, variable
        assert setting not in FILE_ONLY
        values[setting] = SECRET.sub("secret", value)
    Settings.model_validate(values)


def test_settings_in_the_dockerfile_exist() -> None:
    found = re.findall(r"MILLRACE_(\w+)=", DOCKERFILE)
    assert found
    assert all(name.lower() in Settings.model_fields for name in found)


@pytest.mark.parametrize("name", OURS)
def test_a_command_is_one_of_the_programs(name: str) -> None:
    _parser().parse_args(SERVICES[name]["command"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_secret_comes_from_env_and_has_no_default(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if SECRET_NAME.search(variable) or (
            "://" in str(value) and "@" in str(value) and ":" in str(value).partition("://")[2].partition("@")[0]
        ):
            assert SECRET.search(value), f"{variable} is written down"
    for word in re.findall(r"\$\{(\w+)(:?[-?]?)", str(SERVICES[name])):
        assert word[1] == ":?" or word[0] == "MILLRACE_PUBLISH", f"{word[0]} has a default"


def test_only_the_proxy_is_reached_from_outside_and_only_from_this_machine() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["nginx"]
    assert SERVICES["nginx"]["ports"] == ["${MILLRACE_PUBLISH:-127.0.0.1:9380}:8080"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_the_proxy_knows_the_servers_there_are() -> None:
    upstream = (ROOT / "deploy" / "nginx" / "upstream.conf").read_text()
    hosts = re.findall(r"^\s*server ([\w-]+):9380", upstream, re.MULTILINE)
    assert hosts == [name for name, service in SERVICES.items() if service.get("command", [""])[0] == "serve"]


def test_volumes_and_dependencies_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists()
        assert set(service.get("depends_on", {})) <= set(SERVICES)


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def test_env_writes_every_secret_once_for_this_user_alone(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "bin" / "env", tmp_path / "bin" / "env")
    written = [subprocess.run([tmp_path / "bin" / "env"], capture_output=True, check=False).returncode for _ in range(2)]
    assert written == [0, 1], "secrets that are there are not written over"
    file = tmp_path / ".env"
    assert file.stat().st_mode & 0o777 == 0o600
    found = dict(line.split("=") for line in file.read_text().splitlines() if "=" in line)
    assert set(found) == set(SECRET.findall((ROOT / "docker-compose.yml").read_text()))
    assert len(set(found.values())) == len(found)
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in found.values())
    assert sorted(os.listdir(tmp_path)) == [".env", "bin"], "no draft is left"
