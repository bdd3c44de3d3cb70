"""/datasets/{d}/documents: listing, changing, downloading, deleting (contract, 4.2 to 4.5)."""

from typing import Any
from urllib.parse import quote

import orjson
import pytest

from tests.api.conftest import UNKNOWN, Server


def field(path: str, message: str, value: Any) -> str:
    return f"Field: <{path}> - Message: <{message}> - Value: <{value}>"


def condition(name: str, operator: str, value: Any) -> str:
    return quote(orjson.dumps({"conditions": [{"name": name, "comparison_operator": operator, "value": value}]}))


async def change(api: Server, dataset: str, document: str, **body: Any) -> Any:
    return await api.call("PATCH", f"/datasets/{dataset}/documents/{document}", body)


# ---------------------------------------------------------------------------------------------------- list
async def test_a_listed_document_has_every_field_of_the_contract(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.listed(dataset, await api.document(dataset, "Böse.TXT"))
    assert (document["name"], document["suffix"], document["type"], document["size"]) == ("Böse.TXT", "txt", "doc", 24)
    assert (document["run"], document["progress"], document["status"], document["source_type"]) == ("UNSTART", 0, "1", "local")
    assert (document["nickname"], document["meta_fields"], document["process_begin_at"]) == ("one", {}, None)


async def test_lists_are_paged_ordered_and_filtered(api: Server) -> None:
    dataset = await api.dataset()
    names = ["a.txt", "b.md", "C.pdf", "d.png"]
    ids = [await api.document(dataset, name) for name in names]
    await change(api, dataset, ids[0], meta_fields={"year": 2024, "tags": ["x", "y"]})
    await change(api, dataset, ids[1], meta_fields={"year": "2023"})

    async def found(query: str) -> list[str]:
        data = (await api.call("GET", f"/datasets/{dataset}/documents?{query}")).data
        return [item["name"] for item in data["docs"]]

    assert await found("") == names[::-1]
    assert await found("orderby=name&desc=False&page_size=3") == ["C.pdf", "a.txt", "b.md"]
    assert await found("page=2&page_size=3") == ["a.txt"]
    assert await found("page=9") == []
    assert await found("page=x&page_size=-1&desc=anything") == names[::-1]
    assert await found("keywords=c.P") == ["C.pdf"]
    assert await found("keywords=%25") == []
    assert await found("name=c.PDF") == ["C.pdf"]
    assert await found(f"id={ids[1]}") == ["b.md"]
    assert await found(f"id={ids[1]}&name=a.txt") == []
    assert await found(f"ids={ids[0]}&ids={ids[1]}") == ["b.md", "a.txt"]
    assert await found("suffix=md&suffix=PNG") == ["d.png", "b.md"]
    assert await found("types=pdf&types=visual") == ["d.png", "C.pdf"]
    assert await found("run=UNSTART") == names[::-1]
    assert await found("run=0") == names[::-1]
    assert await found("run_status=3") == await found("run[]=DONE") == []
    assert await found("create_time_from=9999999999999") == await found("create_time_to=1") == []
    assert await found(f"metadata_condition={condition('year', '>', 2023)}") == ["a.txt"]
    assert await found(f"metadata_condition={condition('nothing', 'is', 1)}") == []
    assert await found(f"metadata={quote(orjson.dumps({'year': [2023, 2024], 'tags': 'X'}))}") == ["a.txt"]
    assert await found(f"metadata={quote(orjson.dumps({'empty_metadata': True}))}") == ["d.png", "C.pdf"]
    assert await found("return_empty_metadata=true") == ["d.png", "C.pdf"]
    assert await found(f"id={ids[2]}&metadata_condition={condition('year', '>', 2023)}") == ["C.pdf"]
    total = (await api.call("GET", f"/datasets/{dataset}/documents?create_time_to=1")).data["total"]
    assert total == 4  # times are filtered after paging


async def test_the_filter_view_counts_what_there_is(api: Server) -> None:
    dataset = await api.dataset()
    first = await api.document(dataset, "a.txt")
    await api.document(dataset, "b.md")
    await change(api, dataset, first, meta_fields={"tags": ["x", "y"], "year": 2024})
    data = (await api.call("GET", f"/datasets/{dataset}/documents?type=filter")).data
    assert data["total"] == 2
    assert data["filter"] == {
        "suffix": {"md": 1, "txt": 1}, "run_status": {"0": 2},
        "metadata": {"tags": {"x": 1, "y": 1}, "year": {"2024": 1}, "empty_metadata": {"true": 1}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "outcome"),
    [
        ("orderby=size", (101, 400, "invalid orderby field: size")),
        ("page_size=101", (101, 400, "page_size must be less than or equal to 100")),
        ("types=pdf&types=music", (102, 400, "Invalid filter conditions: music type")),
        ("run=MAYBE", (102, 400, "Invalid filter run status conditions: MAYBE")),
        ("run=5", (102, 400, "Invalid filter run status conditions: 5")),
        ("metadata_condition=x", (102, 400, "metadata_condition must be valid JSON: x.")),
        ("metadata_condition=[1]", (102, 400, "metadata_condition must be an object.")),
        ("metadata=x", (102, 400, "metadata must be valid JSON.")),
        ("metadata=1", (102, 400, "metadata must be an object.")),
        (f"id={UNKNOWN}", (102, 404, f"you don't own the document {UNKNOWN}")),
        (f"ids={UNKNOWN}", (102, 404, f"you don't own the document {UNKNOWN}")),
        ("name=nobody", (102, 404, "you don't own the document nobody")),
        ("&".join(f"ids={number}" for number in range(101)), (101, 400, "ids must contain at most 100 IDs")),
    ],
)
async def test_a_query_that_does_not_fit_is_refused(api: Server, query: str, outcome: tuple[int, int, str]) -> None:
    dataset = await api.dataset()
    answer = await api.call("GET", f"/datasets/{dataset}/documents?{query}")
    assert answer.outcome == outcome
    assert answer.body["data"] is None


# ---------------------------------------------------------------------------------------------------- change
async def test_metadata_is_replaced(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    await change(api, dataset, document, meta_fields={"a": 1, "b": ["x", 2.5]})
    assert (await change(api, dataset, document, meta_fields={"c": "é"})).status == 200
    assert (await api.listed(dataset, document))["meta_fields"] == {"c": "é"}


async def test_a_new_name_reaches_lists_searches_and_chunks(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.parsed(dataset, "water.txt")
    assert (await change(api, dataset, document, name="Rivers.TXT")).data["name"] == "Rivers.TXT"
    page = (await api.call("GET", f"/datasets/{dataset}/documents/{document}/chunks?keywords=rivers")).data
    assert [chunk["docnm_kwd"] for chunk in page["chunks"]] == ["Rivers.TXT"] * 2
    found = (await api.call("POST", "/retrieval", {"dataset_ids": [dataset], "question": "rivers", "similarity_threshold": 0})).data
    assert found["doc_aggs"] == [{"doc_name": "Rivers.TXT", "doc_id": document, "count": 2}]


async def test_configs_are_merged_and_raptor_goes_unless_sent(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    config = (await change(api, dataset, document, parser_config={"chunk_token_num": 64})).data["parser_config"]
    assert (config["chunk_token_num"], config["delimiter"]) == (64, "\n")
    assert "raptor" not in config
    config = (await change(api, dataset, document, parser_config={"raptor": {"max_cluster": 3}})).data["parser_config"]
    assert config["raptor"] == {"max_cluster": 3}


async def test_a_new_chunk_method_begins_the_document_anew(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.parsed(dataset)
    changed = (await change(api, dataset, document, chunk_method="qa")).data
    assert (changed["run"], changed["progress"], changed["chunk_count"], changed["token_count"]) == ("UNSTART", 0, 0, 0)
    assert changed["parser_config"]["raptor"] == {"use_raptor": False}
    assert (await api.call("GET", f"/datasets/{dataset}/documents/{document}/chunks")).data["total"] == 0
    assert (await api.call("GET", f"/datasets/{dataset}")).data["chunk_count"] == 0


async def test_the_same_chunk_method_changes_nothing(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.parsed(dataset)
    assert (await change(api, dataset, document, chunk_method="naive")).data["chunk_count"] == 2


async def test_a_document_switched_off_is_not_found_and_comes_back(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.parsed(dataset)
    question = {"dataset_ids": [dataset], "question": "water"}
    assert (await change(api, dataset, document, enabled=0)).data["status"] == "0"
    assert (await api.call("POST", "/retrieval", question)).data["total"] == 0
    assert (await change(api, dataset, document, enabled=1)).data["status"] == "1"
    assert (await api.call("POST", "/retrieval", question)).data["total"] > 0


async def test_what_a_running_parse_cannot_take_in_begins_it_anew(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    await api.call("POST", f"/datasets/{dataset}/chunks", {"document_ids": [document]})
    task = await api.records.claim("slow worker", 60)
    await change(api, dataset, document, enabled=0)
    assert not await api.records.renew(task, "slow worker", 60)
    await api.work()
    page = (await api.call("GET", f"/datasets/{dataset}/documents/{document}/chunks")).data
    assert [chunk["available"] for chunk in page["chunks"]] == [False, False]


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"name": None}, (102, 400, field("name", "Input should be a valid string", None))),
        ({"name": 1}, (102, 400, field("name", "Input should be a valid string", 1))),
        ({"chunk_method": "x"}, (102, 400, field("chunk_method", "`chunk_method` x doesn't exist", "x"))),
        ({"chunk_method": ""}, (102, 400, "`chunk_method` (empty string) is not valid")),
        ({"enabled": 2}, (102, 400, field("enabled", "Input should be 0 or 1", 2))),
        ({"progress": 1.5}, (102, 400, field("progress", "Input should be less than or equal to 1", 1.5))),
        ({"meta_fields": []}, (102, 400, field("meta_fields", "Input should be a valid dictionary", []))),
        ({"meta_fields": {"a": {"x": 1}}}, (102, 400, field("meta_fields", "The type is not supported: {'x': 1}", {"a": {"x": 1}}))),
        (
            {"meta_fields": {"a": [{"x": 1}]}},
            (102, 400, field("meta_fields", "The type is not supported in list: [{'x': 1}]", {"a": [{"x": 1}]})),
        ),
        ({"parser_config": {"x": 1}}, (102, 400, field("parser_config.x", "Extra inputs are not permitted", 1))),
        ({"chunk_count": 1}, (102, 400, "can't change `chunk_count`")),
        ({"token_count": 1}, (102, 400, "can't change `token_count`")),
        ({"progress": 0.5}, (102, 400, "can't change `progress`")),
        ({"name": "a" * 252 + ".txt"}, (101, 400, "File name must be 255 bytes or less.")),
        ({"name": "a.md"}, (101, 400, "The extension of file can't be changed")),
        ({"name": ""}, (101, 400, "The extension of file can't be changed")),
        ({"name": "noextension"}, (101, 400, "The extension of file can't be changed")),
        ({"name": "TAKEN.txt"}, (102, 409, "Duplicated document name in the same dataset.")),
    ],
)
async def test_a_change_that_cannot_be_is_refused(api: Server, body: dict[str, Any], outcome: tuple[int, int, str]) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    await api.document(dataset, "taken.txt")
    answer = await api.call("PUT", f"/datasets/{dataset}/documents/{document}", body)
    assert answer.outcome == outcome
    assert "data" not in answer.body


async def test_the_method_of_pictures_and_mails_cannot_be_changed(api: Server) -> None:
    dataset = await api.dataset()
    for name, method in (("a.png", "picture"), ("a.mp3", "audio"), ("a.pptx", "presentation"), ("a.eml", "email")):
        document = await api.document(dataset, name)
        assert (await api.listed(dataset, document))["chunk_method"] == method
        answer = await change(api, dataset, document, chunk_method="naive")
        assert answer.outcome == (102, 400, "the automatically detected parser type cannot be changed")
        assert (await change(api, dataset, document, chunk_method=method)).status == 200


async def test_unknown_keys_and_unchanged_counters_are_fine(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    assert (await change(api, dataset, document, chunk_count=0, token_count=0, progress=0.0, unknown=1, name="water.txt")).status == 200


async def test_documents_are_looked_for_in_order(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    answer = await change(api, UNKNOWN, document, name=1)
    assert answer.outcome == (102, 404, "you don't own the dataset")
    answer = await change(api, await api.dataset("b"), document, name=1)
    assert answer.outcome == (102, 404, "the dataset doesn't own the document")


# ---------------------------------------------------------------------------------------------------- download
@pytest.mark.parametrize(
    ("name", "media_type", "disposition"),
    [
        ("a b.txt", "text/plain; charset=utf-8", 'attachment; filename="a b.txt"'),
        ("水.pdf", "application/pdf", "attachment; filename=.pdf; filename*=UTF-8''%E6%B0%B4.pdf"),
        ("x.md", "text/markdown; charset=utf-8", "attachment; filename=x.md"),
    ],
)
async def test_a_download_has_the_bytes_the_name_and_the_type(api: Server, name: str, media_type: str, disposition: str) -> None:
    dataset = await api.dataset()
    content = bytes(range(256)) * 3000
    document = await api.document(dataset, name, content)
    answer = await api.call("GET", f"/datasets/{dataset}/documents/{document}")
    assert answer.body == content
    assert answer.headers["content-type"].replace("; charset=utf-8", "") == media_type.replace("; charset=utf-8", "")
    assert answer.headers["content-disposition"] == disposition
    assert answer.headers["content-length"] == str(len(content))


async def test_a_download_that_cannot_be_says_why(api: Server) -> None:
    dataset, other = await api.dataset(), await api.dataset("b")
    empty, full = await api.document(dataset, "a.txt", b""), await api.document(dataset, "b.txt")
    answer = await api.call("GET", f"/datasets/{dataset}/documents/{UNKNOWN}")
    assert answer.body == {"code": 102, "message": "document not found"}
    assert answer.status == 404
    assert (await api.call("GET", f"/datasets/{other}/documents/{full}")).outcome == (102, 404, f"The dataset not own the document {full}.")
    assert (await api.call("GET", f"/datasets/{dataset}/documents/{empty}")).outcome == (102, 400, "This file is empty.")


# ---------------------------------------------------------------------------------------------------- delete
async def test_a_deleted_document_leaves_nothing(api: Server) -> None:
    dataset = await api.dataset()
    first, second = await api.parsed(dataset), await api.parsed(dataset, "b.txt")
    assert (await api.call("DELETE", f"/datasets/{dataset}/documents", {"ids": [first]})).data == {"deleted": 1}
    counts = (await api.call("GET", f"/datasets/{dataset}")).data
    assert (counts["document_count"], counts["chunk_count"], counts["token_num"]) == (1, 2, 4)
    found = (await api.call("POST", "/retrieval", {"dataset_ids": [dataset], "question": "water"})).data
    assert {chunk["document_id"] for chunk in found["chunks"]} == {second}
    assert (await api.call("DELETE", f"/datasets/{dataset}/documents", {"delete_all": True})).data == {"deleted": 1}
    assert (await api.call("DELETE", f"/datasets/{dataset}/documents", {"delete_all": True})).data == {"deleted": 0}
    assert [path for path in (api.parts.settings.data_dir / "blobs").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({}, (102, 400, "should either provide doc ids or set delete_all(true), dataset: {}. ")),
        ({"ids": []}, (102, 400, "should either provide doc ids or set delete_all(true), dataset: {}. ")),
        ({"ids": ["x"], "delete_all": True}, (102, 400, "should not provide both doc ids and delete_all(true), dataset: {}. ")),
        ({"ids": ["a", "b"]}, (102, 404, "These documents do not belong to dataset {} or Document not found: a, b")),
        ({"ids": ["x", "x"]}, (101, 400, "Field: <ids> - Message: <Duplicate ids: 'x'> - Value: <['x', 'x']>")),
        ({"ids": ["x"], "more": 1}, (101, 400, "Field: <more> - Message: <Extra inputs are not permitted> - Value: <1>")),
    ],
)
async def test_a_deletion_that_does_not_fit_deletes_nothing(api: Server, body: dict[str, Any], outcome: tuple[int, int, str]) -> None:
    dataset = await api.dataset()
    await api.document(dataset)
    code, status, message = outcome
    answer = await api.call("DELETE", f"/datasets/{dataset}/documents", body)
    assert answer.outcome == (code, status, message.replace("{}", dataset))
    assert (await api.call("GET", f"/datasets/{dataset}")).data["document_count"] == 1


async def test_lists_and_deletions_of_an_unknown_dataset_end_with_a_blank(api: Server) -> None:
    for method, body in (("GET", None), ("DELETE", {"ids": ["x"]})):
        answer = await api.call(method, f"/datasets/{UNKNOWN}/documents", body)
        assert answer.outcome == (102, 404, f"You don't own the dataset {UNKNOWN}. ")
