"""Metadata of documents over HTTP (contract, 8)."""

from typing import Any

import pytest

from tests.api.conftest import UNKNOWN, Server

CONFIG = {"metadata": [{"key": "year", "type": "number", "description": None, "enum": None}], "built_in_metadata": []}


@pytest.fixture
async def place(api: Server) -> tuple[str, str, str]:
    dataset = await api.dataset()
    first, second = await api.document(dataset, "a.txt"), await api.document(dataset, "b.txt")
    await api.call("PATCH", f"/datasets/{dataset}/documents/{first}", {"meta_fields": {"year": 2024, "tags": ["x", "y"]}})
    await api.call(
        "PATCH", f"/datasets/{dataset}/documents/{second}", {"meta_fields": {"year": 2023, "tags": ["x"], "on": "2024-01-02T03:04:05"}}
    )
    return dataset, first, second


async def test_the_summary_counts_values_by_key(api: Server, place: tuple[str, str, str]) -> None:
    dataset, first, _ = place
    summary = (await api.call("GET", f"/datasets/{dataset}/metadata/summary")).data["summary"]
    assert summary["tags"] == {"type": "list", "values": [["x", 2], ["y", 1]]}
    assert summary["year"] == {"type": "number", "values": [["2023", 1], ["2024", 1]]}
    assert summary["on"]["type"] == "time"
    narrowed = (await api.call("GET", f"/datasets/{dataset}/metadata/summary?doc_ids={first},{UNKNOWN}")).data["summary"]
    assert set(narrowed) == {"year", "tags"}


@pytest.mark.parametrize(("method", "path"), [("POST", "metadata/update"), ("PATCH", "documents/metadatas")])
async def test_several_documents_are_changed_at_once(api: Server, place: tuple[str, str, str], method: str, path: str) -> None:
    dataset, first, second = place
    body = {
        "selector": {"metadata_condition": {"conditions": [{"name": "year", "comparison_operator": ">", "value": 2023}]}},
        "updates": [{"key": "year", "value": 2025}], "deletes": [{"key": "tags", "value": "y"}],
    }  # fmt: skip
    assert (await api.call(method, f"/datasets/{dataset}/{path}", body)).data == {"updated": 1, "matched_docs": 1}
    assert (await api.listed(dataset, first))["meta_fields"] == {"year": 2025, "tags": ["x"]}
    assert (await api.listed(dataset, second))["meta_fields"]["year"] == 2023
    assert (await api.call(method, f"/datasets/{dataset}/{path}", {"updates": [{"key": "year", "value": 2025}]})).data == {
        "updated": 1, "matched_docs": 2,
    }  # fmt: skip
    none = {"selector": {"document_ids": []}, "updates": [{"key": "a", "value": 1}]}
    assert (await api.call(method, f"/datasets/{dataset}/{path}", none)).data == {"updated": 0, "matched_docs": 0}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"selector": []}, None),
        ({"selector": "x"}, "selector must be an object."),
        ({"updates": {"a": 1}}, "updates and deletes must be lists."),
        ({"deletes": "x"}, "updates and deletes must be lists."),
        ({"selector": {"metadata_condition": "x"}}, "metadata_condition must be an object."),
        ({"selector": {"document_ids": "x"}}, "document_ids must be a list."),
        ({"updates": [{"key": "a"}]}, "Each update requires key and value."),
        ({"updates": ["a"]}, "Each update requires key and value."),
        ({"deletes": [{}]}, "Each delete requires key."),
    ],
)
async def test_a_change_that_does_not_fit_is_refused(api: Server, place: tuple[str, str, str], body: dict[str, Any], message: str) -> None:
    dataset, _, _ = place
    answer = await api.call("POST", f"/datasets/{dataset}/metadata/update", body)
    assert answer.outcome == ((0, 200, "") if message is None else (102, 400, message))


async def test_documents_of_elsewhere_are_named(api: Server, place: tuple[str, str, str]) -> None:
    dataset, first, _ = place
    answer = await api.call("POST", f"/datasets/{dataset}/metadata/update", {"selector": {"document_ids": [first, "a", "b"]}})
    assert answer.outcome == (102, 404, f"These documents do not belong to dataset {dataset}: a, b")


async def test_an_unknown_dataset_is_worded_by_route(api: Server) -> None:
    text = f"You don't own the dataset {UNKNOWN}."
    assert (await api.call("GET", f"/datasets/{UNKNOWN}/metadata/summary")).outcome == (102, 404, f"{text} ")
    assert (await api.call("POST", f"/datasets/{UNKNOWN}/metadata/update", {})).outcome == (102, 404, f"{text} ")
    assert (await api.call("PATCH", f"/datasets/{UNKNOWN}/documents/metadatas", {})).outcome == (102, 404, text)
    for method, body in (("GET", None), ("PUT", CONFIG)):
        answer = await api.call(method, f"/datasets/{UNKNOWN}/metadata/config", body)
        assert answer.outcome == (102, 404, f"User '{api.tenant}' lacks permission for dataset '{UNKNOWN}'")


@pytest.mark.parametrize("path", ["metadata/config", "auto_metadata"])
async def test_the_config_is_echoed_and_kept(api: Server, place: tuple[str, str, str], path: str) -> None:
    dataset, _, _ = place
    assert (await api.call("GET", f"/datasets/{dataset}/{path}")).data == {"metadata": [], "built_in_metadata": []}
    assert (await api.call("PUT", f"/datasets/{dataset}/{path}", {"metadata": [{"key": "year", "type": "number"}]})).data == CONFIG
    assert (await api.call("GET", f"/datasets/{dataset}/{path}")).data == CONFIG
    config = (await api.call("GET", f"/datasets/{dataset}")).data["parser_config"]
    assert (config["metadata"], config["chunk_token_num"]) == (CONFIG["metadata"], 512)


@pytest.mark.parametrize("item", [{"key": ""}, {"key": "a" * 256}, {"key": "a", "type": "map"}, {"key": "a", "more": 1}, {}])
async def test_a_config_that_does_not_fit_is_refused(api: Server, place: tuple[str, str, str], item: dict[str, Any]) -> None:
    dataset, _, _ = place
    assert (await api.call("PUT", f"/datasets/{dataset}/metadata/config", {"metadata": [item]})).outcome[:2] == (101, 400)


async def test_a_documents_config_is_answered_with_the_tables_keys(api: Server, place: tuple[str, str, str]) -> None:
    dataset, first, _ = place
    path = f"/datasets/{dataset}/documents/{first}/metadata/config"
    data = (await api.call("PUT", path, {"metadata": {"any": 1}})).data
    assert (data["kb_id"], data["parser_id"], data["parser_config"]["metadata"]) == (dataset, "naive", {"any": 1})
    assert (await api.call("PUT", path, {})).outcome == (101, 400, "metadata is required")
    path = f"/datasets/{dataset}/documents/{UNKNOWN}/metadata/config"
    assert (await api.call("PUT", path, {})).outcome == (102, 404, f"document {UNKNOWN} not found in dataset {dataset}")
    path = f"/datasets/{UNKNOWN}/documents/{first}/metadata/config"
    assert (await api.call("PUT", path, {})).outcome == (102, 404, "you don't own the dataset")


async def test_the_config_of_a_dataset_made_with_one_is_there(api: Server) -> None:
    dataset = await api.dataset(auto_metadata_config={"metadata": [{"key": "year", "type": "number"}]})
    assert (await api.call("GET", f"/datasets/{dataset}/metadata/config")).data == CONFIG
