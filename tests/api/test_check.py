"""api/check.py: what `millrace check` finds in the settings alone."""

import pytest

from api.check import unused
from rag.settings import Settings


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, False),
        ({"elasticsearch_hosts": "http://es:9200"}, True),
        ({"elasticsearch_hosts": "http://es:9200", "store": "elasticsearch"}, False),
    ],
)
def test_addresses_of_a_cluster_that_is_not_used_are_told(given: dict[str, str], found: bool) -> None:
    findings = unused(Settings.model_validate(given))
    assert [bool(finding.remedy) for finding in findings] == [True] * found
