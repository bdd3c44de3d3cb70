"""A client that hangs up while a reranker reads: all that its search held is free at once."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from load.vendor_simulator import Behaviour, VendorSimulator
from tests.e2e.conftest import Start
from tests.e2e.flows import create_dataset, ingest, retrieve
from tests.e2e.server_process import ServerProcess
from tests.e2e.vendors import asking, listening, reranked, until

QUESTION = "When does water boil?"
RERANKER = "order@Jina"
# the reranker takes one call at a time, and has minutes for it
MODELS = '[[models]]\nname = "order"\nprovider = "Jina"\nkind = "rerank"\nbase_url = "{url}"\nconcurrency = 1\ntimeout_seconds = 300\n'
PATIENT = {"MILLRACE_REQUEST_TIMEOUT_SECONDS": "300", "MILLRACE_RERANK_TIMEOUT_SECONDS": "200"}
SOON = 3.0


def figures(server: ServerProcess) -> dict[str, float]:
    """The server's figures: each by its name and the values of its labels, in the order of their names."""
    families = text_string_to_metric_families(server.get("/metrics")[1].decode())
    return {" ".join((each.name, *each.labels.values())): each.value for family in families for each in family.samples}


def under_way(server: ServerProcess) -> tuple[float, float]:
    """Requests that are being answered, but for the one that asks this; and those of them that are at work."""
    now = figures(server)
    return now["millrace_requests_in_flight"] - 1, now["millrace_requests_active"]


def test_a_client_that_hangs_up_in_mid_rerank_frees_its_place_here_and_at_the_reranker(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "millrace.toml"
    with listening(VendorSimulator(Behaviour("hang"))) as vendor:
        config.write_text(MODELS.format(url=vendor.base_url))
        server = start(environ={"MILLRACE_CONFIG": str(config), **PATIENT})
        dataset = create_dataset(server, "facts", parser_config={"chunk_token_num": 8})
        ingest(server, dataset, {"facts.txt": b"Water boils at 100 degrees.\n\nIron melts at 1538 degrees.\n\nSoup boils for an hour."})

        search = {"question": QUESTION, "dataset_ids": [dataset], "rerank_id": RERANKER}
        with asking(server, "/retrieval", search):
            until(lambda: vendor.open_requests == 1, "the reranker was not asked")
            assert under_way(server) == (1, 0)
        until(vendor.hung_up.is_set, "the reranker's side did not see the connection end", SOON)
        until(lambda: under_way(server) == (0, 0), "the request still has its place", SOON)
        assert figures(server)["millrace_vendor_calls_total rerank cancelled Jina"] == 1
        assert figures(server)["millrace_requests_total POST /api/v1/retrieval 499"] == 1

        vendor.behaviour = Behaviour(reply=reranked)
        assert "degraded" not in retrieve(server, [dataset], QUESTION, rerank_id=RERANKER)
        assert (len(vendor.requests), vendor.open_requests) == (2, 0)
