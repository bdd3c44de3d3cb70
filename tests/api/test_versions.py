"""Which versions of the services behind a server will do."""

import pytest

from api import versions
from api.versions import Version
from tests.api.conftest import Server


@pytest.mark.parametrize(
    ("name", "text", "will_do"),
    [
        ("postgresql", "15.8 (Debian 15.8-1)", True),
        ("postgresql", "13beta1", True),
        ("postgresql", "12.22", False),
        ("mysql", "8.4.0", True),
        ("mysql", "5.7.44-log", False),
        ("mariadb", "10.11.6-MariaDB-0+deb12u1", True),
        ("mariadb", "10.5.23-MariaDB", False),
        ("elasticsearch", "8.12.0", True),
        ("elasticsearch", "9.0.1", True),
        ("elasticsearch", "8.9.2", False),
        ("elasticsearch", "", False),
    ],
)
def test_an_older_service_than_the_oldest_that_will_do_is_told(name: str, text: str, will_do: bool) -> None:
    assert Version(name, text).will_do is will_do


async def test_the_database_says_what_it_is(api: Server) -> None:
    (found,) = await versions.of(api.parts)
    assert found.name == "sqlite"
    assert found.will_do
