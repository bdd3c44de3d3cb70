"""/datasets/{d}/documents/{doc}/chunks: all six routes (contract, 6)."""

import base64
from typing import Any

import pytest
import xxhash

from tests.api.conftest import UNKNOWN, Server

IMAGE = base64.b64encode(b"\x89PNG pixels").decode()


@pytest.fixture
async def place(api: Server) -> tuple[str, str, str]:
    """A dataset, its parsed document of two chunks, and the path of the chunks."""
    dataset = await api.dataset()
    document = await api.parsed(dataset)
    return dataset, document, f"/datasets/{dataset}/documents/{document}/chunks"


async def listed(api: Server, path: str, query: str = "") -> list[dict[str, Any]]:
    return (await api.call("GET", f"{path}?{query}")).data["chunks"]


# ---------------------------------------------------------------------------------------------------- add
async def test_an_added_chunk_has_its_fields_and_is_found(api: Server, place: tuple[str, str, str]) -> None:
    dataset, document, path = place
    body = {
        "content": "Gold is soft.",
        "important_keywords": ["metal"],
        "questions": [" Is gold soft? ", " "],
        "tag_kwd": ["t"],
        "tag_feas": {"t": 1},
    }
    chunk = (await api.call("POST", path, body)).data["chunk"]
    assert chunk["id"] == xxhash.xxh64_hexdigest(f"Gold is soft.{document}".encode())
    assert (chunk["document_id"], chunk["dataset_id"], chunk["content"]) == (document, dataset, "Gold is soft.")
    assert (chunk["important_keywords"], chunk["questions"], chunk["tag_kwd"]) == (["metal"], ["Is gold soft?"], ["t"])
    assert len(chunk["create_time"]) == 19
    assert chunk["create_timestamp"] > 1e9
    found = (await api.call("POST", "/retrieval", {"dataset_ids": [dataset], "question": "gold"})).data
    assert found["chunks"][0]["id"] == chunk["id"]
    assert (await api.listed(dataset, document))["chunk_count"] == 3
    assert (await api.call("GET", f"/datasets/{dataset}")).data["chunk_count"] == 3


async def test_the_same_content_is_the_same_chunk_though_counted_twice(api: Server, place: tuple[str, str, str]) -> None:
    dataset, document, path = place
    ids = {(await api.call("POST", path, {"content": "Gold is soft."})).data["chunk"]["id"] for _ in range(2)}
    assert len(ids) == 1
    assert (await api.call("GET", path)).data["total"] == 3
    assert (await api.listed(dataset, document))["chunk_count"] == 4


async def test_a_chunk_may_carry_an_image(api: Server, place: tuple[str, str, str]) -> None:
    dataset, _, path = place
    chunk = (await api.call("POST", path, {"content": "a picture", "image_base64": IMAGE})).data["chunk"]
    assert (chunk["image_id"], chunk["doc_type_kwd"]) == (f"{dataset}-{chunk['id']}", "image")


async def test_chunks_added_by_hand_do_not_carry_the_title(api: Server, place: tuple[str, str, str]) -> None:
    _, _, path = place
    await api.call("POST", path, {"content": "Gold is soft."})
    assert {chunk["content"].replace("<em>", "").replace("</em>", "") for chunk in await listed(api, path, "keywords=water")} == {
        "Water boils.",
        "Iron melts.",
    }


async def test_chunks_of_a_document_that_is_off_are_added_off(api: Server, place: tuple[str, str, str]) -> None:
    dataset, document, path = place
    await api.call("PATCH", f"/datasets/{dataset}/documents/{document}", {"enabled": 0})
    await api.call("POST", path, {"content": "Gold is soft."})
    assert [chunk["available"] for chunk in await listed(api, path)] == [False] * 3


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({}, (102, 400, "`content` is required")),
        ({"content": None}, (102, 400, "`content` is required")),
        ({"content": " \n"}, (102, 400, "`content` is required")),
        ({"content": 1}, (101, 400, "`content` should be a string")),
        ({"content": "x" * 131_073}, (101, 400, "`content` must have at most 131072 characters")),
        ({"content": "x", "important_keywords": "x"}, (102, 400, "`important_keywords` is required to be a list")),
        ({"content": "x", "important_keywords": [1]}, (102, 400, "`important_keywords` must be a list of strings")),
        ({"content": "x", "questions": "x"}, (102, 400, "`questions` is required to be a list")),
        ({"content": "x", "questions": [1]}, (102, 400, "`questions` must be a list of strings")),
        ({"content": "x", "tag_kwd": "x"}, (102, 400, "`tag_kwd` is required to be a list")),
        ({"content": "x", "tag_kwd": [None]}, (102, 400, "`tag_kwd` must be a list of strings")),
        ({"content": "x", "tag_feas": []}, (102, 400, "`tag_feas` must be an object that maps tags to numbers")),
        ({"content": "x", "tag_feas": {"a": "b"}}, (102, 400, "`tag_feas` must map tags to finite numbers")),
        ({"content": "x", "important_keywords": ["k"] * 1001}, (101, 400, "`important_keywords` must contain at most 1000 items")),
        ({"content": "x", "questions": ["k" * 1001]}, (101, 400, "an item of `questions` must have at most 1000 characters")),
        ({"content": "x", "tag_feas": {f"{n}": 1 for n in range(1001)}}, (101, 400, "`tag_feas` must contain at most 1000 keys")),
        ({"content": "x", "image_base64": ""}, (102, 400, "`image_base64` must be a non-empty string")),
        ({"content": "x", "image_base64": 1}, (102, 400, "`image_base64` must be a non-empty string")),
        ({"content": "x", "image_base64": "!!"}, (102, 400, "Invalid `image_base64`")),
    ],
)
async def test_a_chunk_that_does_not_fit_is_refused(
    api: Server, place: tuple[str, str, str], body: dict[str, Any], outcome: tuple[int, int, str]
) -> None:
    _, _, path = place
    assert (await api.call("POST", path, body)).outcome == outcome
    assert (await api.call("GET", path)).data["total"] == 2


# ---------------------------------------------------------------------------------------------------- list
async def test_chunks_are_listed_in_the_documents_order(api: Server, place: tuple[str, str, str]) -> None:
    dataset, document, path = place
    data = (await api.call("GET", path)).data
    assert [chunk["content"] for chunk in data["chunks"]] == ["Water boils.", "Iron melts."]
    assert data["doc"]["id"] == document
    first = data["chunks"][0]
    assert first == {
        "id": first["id"], "content": "Water boils.", "document_id": document, "docnm_kwd": "water.txt", "dataset_id": dataset,
        "important_keywords": [], "questions": [], "tag_kwd": [], "image_id": "", "doc_type_kwd": "", "available": True,
        "positions": [[1, 0, 10, 0, 1]],
    }  # fmt: skip
    assert [chunk["content"] for chunk in await listed(api, path, "page=2&page_size=1")] == ["Iron melts."]
    assert await listed(api, path, "page=3&page_size=1") == []


async def test_lists_are_filtered_by_id_and_switch(api: Server, place: tuple[str, str, str]) -> None:
    _, _, path = place
    water, iron = [chunk["id"] for chunk in await listed(api, path)]
    await api.call("PATCH", path, {"chunk_ids": [iron], "available_int": 0})
    for query, ids in {
        f"id={water}": [water], "id=": [water, iron], f"chunk_ids={water},{iron}": [water, iron], f"chunk_ids={water}&chunk_ids=x": [water],
        "chunk_ids=x": [], "available=true": [water], "available=false": [iron], "keywords=water": [water, iron],
        "keywords=water&available=false": [iron], "keywords=water&available=true": [water], f"keywords=water&id={iron}": [iron],
        "keywords=unheard": [],
    }.items():  # fmt: skip
        page = (await api.call("GET", f"{path}?{query}")).data
        assert (sorted(chunk["id"] for chunk in page["chunks"]), page["total"]) == (sorted(ids), len(ids)), query


async def test_matched_words_are_marked(api: Server, place: tuple[str, str, str]) -> None:
    _, _, path = place
    assert "Iron <em>melts</em>." in [chunk["content"] for chunk in await listed(api, path, "keywords=melting")]


async def test_lists_of_unknown_chunks_are_errors(api: Server, place: tuple[str, str, str]) -> None:
    dataset, _, path = place
    for chunk_id in ("x", "0" * 16):
        assert (await api.call("GET", f"{path}?id={chunk_id}")).outcome == (102, 404, f"Chunk not found: {dataset}/{chunk_id}")
    many = "&".join(f"chunk_ids={number}" for number in range(101))
    assert (await api.call("GET", f"{path}?{many}")).outcome == (101, 400, "chunk_ids must contain at most 100 IDs")
    assert (await api.call("GET", f"{path}?page_size=101")).outcome == (101, 400, "page_size must be less than or equal to 100")


async def test_a_chunk_of_another_document_is_not_found(api: Server, place: tuple[str, str, str]) -> None:
    dataset, _, path = place
    other = await api.parsed(dataset, "b.txt")
    theirs = (await listed(api, f"/datasets/{dataset}/documents/{other}/chunks"))[0]["id"]
    assert (await api.call("GET", f"{path}/{theirs}")).outcome == (102, 404, "Chunk not found!")
    assert (await api.call("PATCH", f"{path}/{theirs}", {"content": "x"})).outcome == (102, 404, f"Can't find this chunk {theirs}")
    assert (await api.call("DELETE", path, {"chunk_ids": [theirs]})).outcome == (102, 404, "rm_chunk deleted chunks 0, expect 1")


# ---------------------------------------------------------------------------------------------------- get, change
async def test_one_chunk_comes_with_the_names_of_the_index(api: Server, place: tuple[str, str, str]) -> None:
    dataset, document, path = place
    chunk_id = (await listed(api, path))[0]["id"]
    raw = (await api.call("GET", f"{path}/{chunk_id}")).data
    assert (raw["id"], raw["content_with_weight"], raw["doc_id"], raw["kb_id"]) == (chunk_id, "Water boils.", document, dataset)
    assert (raw["available_int"], raw["position_int"], raw["docnm_kwd"]) == (1, [[1, 0, 10, 0, 1]], "water.txt")


async def test_a_changed_chunk_keeps_its_id_and_is_found_by_its_new_words(api: Server, place: tuple[str, str, str]) -> None:
    dataset, document, path = place
    chunk_id = (await listed(api, path))[0]["id"]
    body = {
        "content": "Copper rusts green over time.", "important_keywords": ["verdigris"], "questions": ["What rusts green?"],
        "tag_kwd": ["metal"], "positions": [[2, 1, 2, 3, 4]], "available": 1, "unknown": 1,
    }  # fmt: skip
    assert (await api.call("PUT", f"{path}/{chunk_id}", body)).body == {"code": 0}
    chunk = (await listed(api, path, f"id={chunk_id}"))[0]
    assert (chunk["content"], chunk["positions"], chunk["tag_kwd"]) == ("Copper rusts green over time.", [[2, 1, 2, 3, 4]], ["metal"])
    for weight in (0, 1):
        question = {"dataset_ids": [dataset], "question": "verdigris copper", "vector_similarity_weight": weight, "similarity_threshold": 0}
        found = (await api.call("POST", "/retrieval", question)).data["chunks"]
        assert found[0]["id"] == chunk_id
    assert (await api.listed(dataset, document))["token_count"] > 4


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"content": " "}, (102, 400, "`content` is required")),
        ({"content": 1}, (101, 400, "`content` should be a string")),
        ({"content": "x" * 131_073}, (101, 400, "`content` must have at most 131072 characters")),
        ({"important_keywords": "x"}, (102, 400, "`important_keywords` should be a list")),
        ({"important_keywords": [1]}, (101, 400, "`important_keywords` must be a list of strings")),
        ({"questions": "x"}, (102, 400, "`questions` should be a list")),
        ({"questions": [1]}, (101, 400, "`questions` must be a list of strings")),
        ({"positions": "x"}, (102, 400, "`positions` should be a list")),
        ({"positions": [[1, 2, 3, 4, 5]] * 1001}, (101, 400, "`positions` must contain at most 1000 items")),
        ({"tag_kwd": ["t" * 1001]}, (101, 400, "an item of `tag_kwd` must have at most 1000 characters")),
        ({"positions": [[1]]}, (101, 400, "`positions` should be a list of lists of 5 integers")),
        ({"tag_kwd": "x"}, (102, 400, "`tag_kwd` should be a list")),
        ({"tag_kwd": [1]}, (102, 400, "`tag_kwd` must be a list of strings")),
        ({"available": "perhaps"}, (101, 400, "`available` should be true, false, 1 or 0")),
        ({"available": 2}, (101, 400, "`available` should be true, false, 1 or 0")),
    ],
)
async def test_a_change_that_does_not_fit_is_refused(
    api: Server, place: tuple[str, str, str], body: dict[str, Any], outcome: tuple[int, int, str]
) -> None:
    _, _, path = place
    chunk_id = (await listed(api, path))[0]["id"]
    assert (await api.call("PATCH", f"{path}/{chunk_id}", body)).outcome == outcome


async def test_null_keeps_and_questions_need_their_answers(api: Server, place: tuple[str, str, str]) -> None:
    dataset, document, path = place
    chunk_id = (await listed(api, path))[0]["id"]
    assert (await api.call("PATCH", f"{path}/{chunk_id}", {"content": None, "questions": None})).body == {"code": 0}
    assert (await listed(api, path))[0]["content"] == "Water boils."
    await api.call("PATCH", f"/datasets/{dataset}/documents/{document}", {"chunk_method": "qa"})
    chunk_id = (await api.call("POST", path, {"content": "q\ta"})).data["chunk"]["id"]
    answer = await api.call("PATCH", f"{path}/{chunk_id}", {"content": "no answer"})
    assert answer.outcome == (102, 400, "Q&A must be separated by TAB/ENTER key.")
    assert (await api.call("PATCH", f"{path}/{chunk_id}", {"content": "why?\tbecause"})).body == {"code": 0}


# ---------------------------------------------------------------------------------------------------- switch, delete
async def test_chunks_switched_off_are_not_found(api: Server, place: tuple[str, str, str]) -> None:
    dataset, _, path = place
    ids = [chunk["id"] for chunk in await listed(api, path)]
    question = {"dataset_ids": [dataset], "question": "water iron", "similarity_threshold": 0}
    assert (await api.call("PATCH", path, {"chunk_ids": ids, "available": False})).data is True
    assert (await api.call("POST", "/retrieval", question)).data["total"] == 0
    assert (await api.call("PATCH", path, {"chunk_ids": ids, "available_int": 1})).data is True
    assert (await api.call("POST", "/retrieval", question)).data["total"] == 2


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({}, (102, 400, "`chunk_ids` is required.")),
        ({"chunk_ids": []}, (102, 400, "`chunk_ids` is required.")),
        ({"chunk_ids": ["x"]}, (102, 400, "`available_int` or `available` is required.")),
        ({"chunk_ids": ["0" * 16], "available": True}, (102, 500, "Index updating failure")),
        ({"chunk_ids": ["x"], "available": "x"}, (101, 400, "`available` should be true, false, 1 or 0")),
    ],
)
async def test_a_switch_that_does_not_fit_is_refused(
    api: Server, place: tuple[str, str, str], body: dict[str, Any], outcome: tuple[int, int, str]
) -> None:
    _, _, path = place
    assert (await api.call("PATCH", path, body)).outcome == outcome


async def test_deleting_goes_by_ids_and_counts_down(api: Server, place: tuple[str, str, str]) -> None:
    dataset, document, path = place
    water, iron = [chunk["id"] for chunk in await listed(api, path)]
    answer = await api.call("DELETE", path, {"chunk_ids": [water, water, "0" * 16]})
    assert answer.outcome == (102, 404, "rm_chunk deleted chunks 1, expect 2")
    assert [chunk["id"] for chunk in await listed(api, path)] == [iron]
    answer = await api.call("DELETE", path, {"chunk_ids": [iron, iron]})
    assert answer.data == {"success_count": 1, "errors": [f"Duplicate chunk ids: {iron}"]}
    assert (await api.listed(dataset, document))["chunk_count"] == 0
    assert (await api.call("GET", f"/datasets/{dataset}")).data["chunk_count"] == 0


async def test_deleting_without_ids_does_nothing_but_with_delete_all(api: Server, place: tuple[str, str, str]) -> None:
    dataset, document, path = place
    for body in (None, {}, {"chunk_ids": []}, {"chunk_ids": None}, {"delete_all": False}):
        assert (await api.call("DELETE", path, body)).body == {"code": 0}
    assert (await api.call("GET", path)).data["total"] == 2
    assert (await api.call("DELETE", path, {"delete_all": True})).body == {"code": 0}
    assert (await api.call("GET", path)).data["total"] == 0
    after = await api.listed(dataset, document)
    assert (after["chunk_count"], after["token_count"]) == (0, 0)


@pytest.mark.parametrize("call", ["POST ", "GET ", "PATCH ", "DELETE ", "GET /x", "PATCH /x", "PUT /x"])
async def test_dataset_and_document_come_before_the_body(api: Server, place: tuple[str, str, str], call: str) -> None:
    method, rest = call.split(" ")
    dataset, document, _ = place
    answer = await api.call(method, f"/datasets/{UNKNOWN}/documents/{document}/chunks{rest}", {})
    assert answer.outcome == (102, 404, f"You don't own the dataset {UNKNOWN}.")
    answer = await api.call(method, f"/datasets/{dataset}/documents/{UNKNOWN}/chunks{rest}", {})
    assert answer.outcome == (102, 404, f"you don't own the document {UNKNOWN}")
    other = await api.dataset("other")
    answer = await api.call(method, f"/datasets/{other}/documents/{document}/chunks{rest}", {})
    assert answer.outcome == (102, 404, f"you don't own the document {document}")
