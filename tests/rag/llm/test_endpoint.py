"""The URLs and credentials made from what the operator wrote."""

import pytest

from rag.errors import SettingsError
from rag.llm.endpoint import Endpoint, authorization, openai_url

URLS = {
    "http://h:8080": "http://h:8080/v1/embeddings",
    "http://h:8080/": "http://h:8080/v1/embeddings",
    "http://h:8080/v1": "http://h:8080/v1/embeddings",
    "http://h:8080/v1/": "http://h:8080/v1/embeddings",
    "http://h/v1/embeddings": "http://h/v1/embeddings",
    "https://gw/x": "https://gw/x/v1/embeddings",
    "https://gw/x/v1": "https://gw/x/v1/embeddings",
    "https://gw/x/embeddings": "https://gw/x/embeddings",
    "https://ark/api/v3": "https://ark/api/v3/embeddings",
    "https://google/v1beta/openai/": "https://google/v1beta/openai/embeddings",
    "https://azure/openai/v1?api-version=1": "https://azure/openai/v1/embeddings?api-version=1",
    "http://user:pass@h:80/v1": "http://h:80/v1/embeddings",
    "http://[::1]:8080": "http://[::1]:8080/v1/embeddings",
    "http://h/embeddings-gateway": "http://h/embeddings-gateway/v1/embeddings",
}


@pytest.mark.parametrize(("base_url", "url"), URLS.items())
def test_host_version_prefix_and_full_url_are_accepted_alike(base_url: str, url: str) -> None:
    assert openai_url(base_url, "embeddings") == url


def test_a_path_of_two_segments_is_recognised() -> None:
    assert openai_url("http://h/v1/chat/completions", "chat/completions") == "http://h/v1/chat/completions"
    assert openai_url("http://h/chat", "chat/completions") == "http://h/chat/v1/chat/completions"


@pytest.mark.parametrize("base_url", ["", "h:8080", "ftp://h", "http://", "/v1"])
def test_what_is_no_http_address_is_refused(base_url: str) -> None:
    with pytest.raises(SettingsError):
        openai_url(base_url, "embeddings")


def test_the_key_goes_before_the_urls_user() -> None:
    assert authorization("http://h", None) == ""
    assert authorization("http://u:p%40@h", None) == "Basic dTpwQA=="
    assert authorization("http://u:p@h", "sk-1") == "Bearer sk-1"


@pytest.mark.parametrize("key", ["sk-1\n", "sk 1", "schlüssel", "\x00"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        authorization("http://h", key)
    assert key not in str(caught.value)


def test_an_endpoints_repr_holds_no_key() -> None:
    assert "sk-1" not in repr(Endpoint("m@P", "http://h/v1", "Bearer sk-1"))
