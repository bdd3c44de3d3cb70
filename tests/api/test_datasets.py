"""/datasets: creating, changing, listing, deleting (contract, 3)."""

import asyncio
from typing import Any

import pytest

from api.schema.parser_config import SUMMARY_PROMPT, GraphRag, ParserConfig, Raptor
from tests.api.conftest import MODEL, UNKNOWN, Server, multipart

CONFIG_CASES = [
    ({"x": 1}, ".x", "Extra inputs are not permitted", 1),
    ({"raptor": {"x": 1}}, ".raptor.x", "Extra inputs are not permitted", 1),
    ({"chunk_token_num": "1"}, ".chunk_token_num", "Input should be a valid integer", "1"),
    ({"html4excel": 1}, ".html4excel", "Input should be a valid boolean", 1),
    ({"tag_kb_ids": 1}, ".tag_kb_ids", "Input should be a valid list", 1),
    ({"delimiter": ""}, ".delimiter", "String should have at least 1 character", ""),
    ({"auto_keywords": 33}, ".auto_keywords", "Input should be less than or equal to 32", 33),
    ({"chunk_token_num": 0}, ".chunk_token_num", "Input should be greater than or equal to 1", 0),
    ({"filename_embd_weight": True}, ".filename_embd_weight", "Input should be a valid number", True),
    ({"raptor": {"max_token": 2049}}, ".raptor.max_token", "Input should be less than or equal to 2048", 2049),
    ("x", "", "Input should be a valid dictionary", "x"),
]


def field(path: str, message: str, value: Any) -> str:
    return f"Field: <{path}> - Message: <{message}> - Value: <{value}>"


METHODS = "'naive', 'book', 'email', 'laws', 'manual', 'one', 'paper', 'picture', 'presentation', 'qa', 'table', 'tag' or 'resume'"
NO_PREFIX = "missing MIME prefix. Expected format: data:<mime>;base64,<data>"
MUST_NAME = "embedding model identifier must follow <model_name>@<provider> format"
BOTH_PARTS = "both model_name and provider must be non-empty strings"


async def test_a_new_dataset_has_every_field_of_the_contract(api: Server) -> None:
    data = (await api.call("POST", "/datasets", {"name": "  Facts  "})).data
    assert data["name"] == "Facts"
    assert (data["embedding_model"], data["permission"], data["chunk_method"], data["language"]) == (MODEL, "me", "naive", "English")
    assert (data["tenant_id"], data["created_by"], data["status"]) == (api.tenant, api.tenant, "1")
    assert data["id"][12] == "1"  # a version 1 UUID
    assert data["create_date"].endswith(" GMT")
    assert data["graphrag_task_id"] is None
    assert len(data["tenant_embd_id"]) == 32


async def test_the_naive_config_is_the_one_of_the_contract(api: Server) -> None:
    config = (await api.call("POST", "/datasets", {"name": "a", "parser_config": {}})).data["parser_config"]
    assert config == {
        "layout_recognize": "DeepDOC", "chunk_token_num": 512, "delimiter": "\n", "auto_keywords": 0, "auto_questions": 0,
        "html4excel": False, "topn_tags": 3, "table_context_size": 0, "image_context_size": 0, "children_delimiter": "",
        "raptor": {
            "use_raptor": True, "prompt": SUMMARY_PROMPT, "max_token": 512, "clustering_threshold": 0.3, "clustering_ratio": 0.5,
            "max_cluster": 64, "random_seed": 0,
        },
        "graphrag": {
            "use_graphrag": True, "entity_types": ["organization", "person", "geo", "event", "category"], "method": "light",
            "batch_chunk_token_size": 4096, "retry_attempts": 2, "retry_backoff_seconds": 2.0, "retry_backoff_max_seconds": 60.0,
            "build_subgraph_timeout_per_chunk_seconds": 300, "build_subgraph_min_timeout_seconds": 600,
            "merge_timeout_seconds": 180, "resolution_timeout_seconds": 1800, "community_timeout_seconds": 1800,
            "lock_acquire_timeout_seconds": 600,
        },
        "parent_child": {"use_parent_child": False, "children_delimiter": "\n"}, "llm_id": "extractive@Millrace",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["qa", "manual", "paper", "book", "laws", "presentation"])
async def test_other_methods_start_with_raptor_and_graphrag_off(api: Server, method: str) -> None:
    config = (await api.call("POST", "/datasets", {"name": "a", "chunk_method": method})).data["parser_config"]
    assert config == {
        "raptor": {"use_raptor": False}, "graphrag": {"use_graphrag": False}, "table_context_size": 0, "image_context_size": 0,
        "llm_id": "extractive@Millrace",
    }  # fmt: skip


async def test_a_config_that_was_sent_is_laid_over_the_table_with_the_whole_schema(api: Server) -> None:
    sent = {"chunk_token_num": 100, "raptor": {"use_raptor": True, "threshold": 0.1}}
    config = (await api.call("POST", "/datasets", {"name": "a", "chunk_method": "tag", "parser_config": sent})).data["parser_config"]
    assert config["chunk_token_num"] == 100
    assert config["raptor"] == Raptor(use_raptor=True).model_dump()
    assert config["graphrag"] == GraphRag().model_dump()
    assert set(config) == (set(ParserConfig.model_fields) - {"ext"}) | {"table_context_size", "image_context_size", "llm_id"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, field("name", "Field required", {})),
        ({"name": 1}, field("name", "Input should be a valid string", 1)),
        ({"name": None}, field("name", "Input should be a valid string", None)),
        ({"name": ""}, field("name", "String should have at least 1 character", "")),
        ({"name": " "}, field("name", "String should have at least 1 character", " ")),
        ({"name": "a" * 129}, field("name", "String should have at most 128 characters", "a" * 128 + "...")),
        ({"name": "水" * 43}, field("name", "String should have at most 128 bytes", "水" * 43)),
        ({"name": "a", "id": "x"}, field("id", "Extra inputs are not permitted", "x")),
        ({"name": "a", "pagerank": 1}, field("pagerank", "Extra inputs are not permitted", 1)),
        ({"name": "a", "avatar": "x"}, field("avatar", NO_PREFIX, "x")),
        ({"name": "a", "avatar": "image,x"}, field("avatar", "invalid MIME prefix format. Must start with 'data:'", "image,x")),
        (
            {"name": "a", "avatar": "data:image/gif;base64,x"},
            field("avatar", "Unsupported MIME type. Allowed: ['image/jpeg', 'image/png']", "data:image/gif;base64,x"),
        ),
        ({"name": "a", "description": "d" * 65536}, field("description", "String should have at most 65535 characters", "d" * 128 + "...")),
        ({"name": "a", "embedding_model": ""}, field("embedding_model", MUST_NAME, "")),
        ({"name": "a", "embedding_model": "bare"}, field("embedding_model", MUST_NAME, "bare")),
        ({"name": "a", "embedding_model": "@x"}, field("embedding_model", BOTH_PARTS, "@x")),
        ({"name": "a", "embedding_model": "x@"}, field("embedding_model", BOTH_PARTS, "x@")),
        ({"name": "a", "permission": None}, field("permission", "Input should be 'me' or 'team'", None)),
        ({"name": "a", "permission": "all"}, field("permission", "Input should be 'me' or 'team'", "all")),
        ({"name": "a", "chunk_method": ""}, field("chunk_method", f"Input should be {METHODS}", "")),
        ({"name": "a", "chunk_method": None}, field("chunk_method", f"Input should be {METHODS}", None)),
        ({"name": "a", "parse_type": 1}, "required fields missing: pipeline_id"),
        ({"name": "a", "pipeline_id": UNKNOWN}, "required fields missing: parse_type"),
        ({"name": "a", "chunk_method": "qa", "parse_type": 1}, "parser_id provided → disallowed fields present: parse_type"),
    ],
)  # fmt: skip
async def test_a_body_that_does_not_fit_is_named_field_by_field(api: Server, body: dict[str, Any], message: str) -> None:
    code, status, text = (await api.call("POST", "/datasets", body)).outcome
    assert (code, status) == (101, 400)
    assert message in text


@pytest.mark.parametrize(("config", "path", "message", "value"), CONFIG_CASES)
async def test_a_config_is_checked_at_every_level(api: Server, config: Any, path: str, message: str, value: Any) -> None:
    answer = await api.call("POST", "/datasets", {"name": "a", "parser_config": config})
    assert answer.outcome == (101, 400, field(f"parser_config{path}", message, value))


async def test_a_small_summary_size_is_raised(api: Server) -> None:
    dataset = await api.dataset(parser_config={"raptor": {"max_token": 1}})
    assert (await api.call("GET", f"/datasets/{dataset}")).data["parser_config"]["raptor"]["max_token"] == 512


async def test_a_config_over_the_limit_says_its_size(api: Server) -> None:
    body = {"name": "a", "parser_config": {"ext": {"x": "y" * 65535}}}
    _, _, text = (await api.call("POST", "/datasets", body)).outcome
    assert "Message: <Parser config exceeds size limit (max 65,535 characters). Current size: 6" in text


async def test_unknown_models_are_told_from_unknown_providers(api: Server) -> None:
    answer = await api.call("POST", "/datasets", {"name": "a", "embedding_model": "m@Nobody"})
    assert answer.outcome == (102, 404, "Provider Nobody not found for model m.")
    answer = await api.call("POST", "/datasets", {"name": "a", "embedding_model": "m@Local"})
    assert answer.outcome == (102, 404, "Model m not found for model embedding")


@pytest.mark.parametrize("name", ["friend", " other@Sim ", "all-MiniLM-L6-v2@instance@Local"])
async def test_any_name_of_a_model_is_taken_and_echoed(api: Server, name: str) -> None:
    assert (await api.call("POST", "/datasets", {"name": "a", "embedding_model": name})).data["embedding_model"] == name.strip()


@pytest.mark.parametrize(
    ("data", "content_type", "outcome"),
    [
        (b"{}", "text/plain", (101, 415, "Unsupported content type: Expected application/json, got text/plain")),
        (b"{}", None, (101, 415, "Unsupported content type: Expected application/json, got None")),
        (b"", "application/json", (101, 400, "Malformed JSON syntax: Missing commas/brackets or invalid encoding")),
        (b"{", "application/json", (101, 400, "Malformed JSON syntax: Missing commas/brackets or invalid encoding")),
        (b'"a"', "application/json", (101, 400, "Invalid request payload: expected object, got str")),
        (b"[1]", "application/json", (101, 400, "Invalid request payload: expected object, got list")),
        (b"[]", "application/json", (101, 400, field("name", "Field required", {}))),
        (b"null", "application/json", (101, 400, field("name", "Field required", {}))),
    ],
)
async def test_strict_bodies_are_read_in_the_order_of_the_contract(
    api: Server, data: bytes, content_type: str | None, outcome: tuple[int, int, str]
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert (await api.call("POST", "/datasets", data=data, headers=headers)).outcome == outcome


async def test_taken_names_get_numbers_whatever_their_case(api: Server) -> None:
    names = [(await api.call("POST", "/datasets", {"name": name})).data["name"] for name in ("Facts", "facts", "FACTS", "v1.txt", "V1.TXT")]
    assert names == ["Facts", "facts(1)", "FACTS(2)", "v1.txt", "V1(1).TXT"]
    long = "é" * 64
    assert [(await api.call("POST", "/datasets", {"name": long})).data["name"] for _ in "ab"] == [long, "é" * 62 + "(1)"]


async def test_a_hundred_parallel_creates_make_a_hundred_names(api: Server) -> None:
    answers = await asyncio.gather(*(api.call("POST", "/datasets", {"name": "same"}) for _ in range(100)))
    assert len({answer.data["name"].lower() for answer in answers}) == 100
    assert (await api.call("GET", "/datasets?page_size=1")).body["total_datasets"] == 100


# ---------------------------------------------------------------------------------------------------- PUT
async def test_an_update_changes_what_was_sent_and_nothing_else(api: Server) -> None:
    dataset = await api.dataset(description="old", parser_config={"chunk_token_num": 100})
    body = {"name": "New", "avatar": None, "language": "Chinese", "connectors": [{"a": 1}], "parser_config": {"raptor": {"max_cluster": 2}}}
    data = (await api.call("PUT", f"/datasets/{dataset}", body)).data
    assert (data["name"], data["description"], data["language"], data["connectors"]) == ("New", "old", "Chinese", [{"a": 1}])
    assert data["parser_config"]["chunk_token_num"] == 100
    assert (data["parser_config"]["raptor"]["max_cluster"], data["parser_config"]["raptor"]["random_seed"]) == (2, 0)
    assert (data["parser_config"]["children_delimiter"], data["parser_config"]["enable_children"]) == ("", False)


async def test_a_new_method_without_a_config_loads_its_table(api: Server) -> None:
    dataset = await api.dataset()
    data = (await api.call("PUT", f"/datasets/{dataset}", {"chunk_method": "table"})).data
    assert data["parser_config"] == {"table_context_size": 0, "image_context_size": 0}


@pytest.mark.parametrize("body", [{"embedding_model": None}, {"parser_config": {}}, {"parser_config": None}, {"description": None}])
async def test_null_is_allowed_where_the_contract_says(api: Server, body: dict[str, Any]) -> None:
    dataset = await api.dataset()
    data = (await api.call("PUT", f"/datasets/{dataset}", body)).data
    assert data["embedding_model"] == MODEL
    assert data["parser_config"]["chunk_token_num"] == 512


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({}, (102, 400, "no properties were modified")),
        ({"name": "Taken"}, (102, 409, "Dataset name 'Taken' already exists")),
        ({"name": None}, (101, 400, field("name", "Input should be a valid string", None))),
        ({"pagerank": None}, (101, 400, field("pagerank", "Input should be a valid integer", None))),
        ({"pagerank": 101}, (101, 400, field("pagerank", "Input should be less than or equal to 100", 101))),
        ({"pagerank": 1}, (102, 400, "'pagerank' can only be set when doc_engine is elasticsearch")),
        ({"embedding_model": "m@Nobody"}, (102, 404, "Provider Nobody not found for model m.")),
        ({"id": "x"}, (101, 400, field("id", "Extra inputs are not permitted", "x"))),
    ],
)
async def test_an_update_that_cannot_be_is_refused(api: Server, body: dict[str, Any], outcome: tuple[int, int, str]) -> None:
    dataset = await api.dataset()
    await api.dataset("taken")
    assert (await api.call("PUT", f"/datasets/{dataset}", body)).outcome == outcome


async def test_an_id_that_is_no_uuid_comes_first(api: Server) -> None:
    answer = await api.call("PUT", "/datasets/x", {})
    assert answer.outcome == (101, 400, field("dataset_id", "Invalid UUID format", "x"))
    answer = await api.call("PUT", f"/datasets/{UNKNOWN}", {"name": "a"})
    assert answer.outcome == (102, 404, f"User '{api.tenant}' lacks permission for dataset '{UNKNOWN}'")


async def test_a_dataset_keeps_its_own_name_in_another_case(api: Server) -> None:
    dataset = await api.dataset("facts")
    assert (await api.call("PUT", f"/datasets/{dataset}", {"name": "FACTS"})).data["name"] == "FACTS"


# ---------------------------------------------------------------------------------------------------- GET
async def test_lists_are_paged_newest_first_with_their_total(api: Server) -> None:
    ids = [await api.dataset(f"d{number}") for number in range(5)]
    pages = [await api.call("GET", f"/datasets?page={page}&page_size=2") for page in (1, 2, 3)]
    assert [item["id"] for page in pages for item in page.data] == ids[::-1]
    assert {page.body["total_datasets"] for page in pages} == {5}
    oldest = await api.call("GET", "/datasets?desc=false&orderby=update_time&page_size=1")
    assert oldest.data[0]["id"] == ids[0]
    assert (oldest.data[0]["nickname"], oldest.data[0]["embedding_model_name"]) == ("one", "all-MiniLM-L6-v2")


async def test_lists_are_filtered(api: Server) -> None:
    first, second = await api.dataset("First"), await api.dataset("Second", chunk_method="qa")
    for query in (
        f"id={first}",
        "name=FIRST",
        f"ids={first}",
        'ext={"keywords":"irs"}',
        'ext={"parser_id":"naive"}',
        f"id={first}&name=first",
    ):
        assert [item["id"] for item in (await api.call("GET", f"/datasets?{query}")).data] == [first], query
    assert len((await api.call("GET", f"/datasets?ids={first},{second}")).data) == 2
    assert (await api.call("GET", f"/datasets?id={first}&name=second")).data == []
    assert (await api.call("GET", '/datasets?ext={"owner_ids":["x"]}')).data == []
    assert len((await api.call("GET", "/datasets?name=")).data) == 2
    hyphens = f"{first[:8]}-{first[8:12]}-{first[12:16]}-{first[16:20]}-{first[20:]}"
    assert len((await api.call("GET", f"/datasets?id={hyphens}")).data) == 1
    owners = (await api.call("GET", "/datasets?type=filter")).data
    assert owners == {"filter": {"owner": [{"id": api.tenant, "label": "one", "count": 2}]}, "total": 2}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("x=1", field("x", "Extra inputs are not permitted", "1")),
        ("page=0", field("page", "Input should be greater than or equal to 1", "0")),
        ("page=a", field("page", "Input should be a valid integer, unable to parse string as an integer", "a")),
        ("page_size=101", field("page_size", "Input should be less than or equal to 100", "101")),
        ("orderby=name", field("orderby", "Input should be 'create_time' or 'update_time'", "name")),
        ("desc=perhaps", field("desc", "Input should be a valid boolean, unable to interpret input", "perhaps")),
        ("id=", field("id", "Invalid UUID format", "")),
        ("id=x", field("id", "Invalid UUID format", "x")),
        (f"ids={UNKNOWN}&ids={UNKNOWN}", f"Message: <Duplicate ids: '{UNKNOWN}'>"),
        ("ids=" + ",".join(f"{number:032x}" for number in range(101)), "ids must contain at most 100 IDs"),
        ("ext=[]", "Field: <ext>"),
    ],
)
async def test_a_query_that_does_not_fit_is_refused(api: Server, query: str, message: str) -> None:
    code, status, text = (await api.call("GET", f"/datasets?{query}")).outcome
    assert (code, status) == (101, 400)
    assert message in text


async def test_unknown_filters_are_errors(api: Server) -> None:
    for query, shown in ((f"id={UNKNOWN}", UNKNOWN), ("name=nobody", "nobody"), (f"ids={UNKNOWN}", UNKNOWN)):
        answer = await api.call("GET", f"/datasets?{query}")
        assert answer.outcome == (102, 404, f"User '{api.tenant}' lacks permission for dataset '{shown}'")
    dataset = await api.dataset()
    assert (await api.call("GET", f"/datasets?id={dataset}&ids={dataset}")).outcome[:2] == (102, 400)


async def test_parsing_states_are_counted_on_request(api: Server) -> None:
    dataset = await api.dataset()
    await api.document(dataset)
    await api.parsed(dataset, "b.txt")
    status = (await api.call("GET", "/datasets?include_parsing_status=true")).data[0]["parsing_status"]
    assert status == {"unstart_count": 1, "running_count": 0, "cancel_count": 0, "done_count": 1, "fail_count": 0}


async def test_one_dataset_tells_the_size_of_its_files(api: Server) -> None:
    dataset = await api.dataset()
    await api.document(dataset, content=b"12345")
    data = (await api.call("GET", f"/datasets/{dataset}")).data
    assert (data["size"], data["connectors"], data["document_count"]) == (5, [], 1)
    assert (await api.call("GET", "/datasets/x")).outcome == (102, 404, f"User '{api.tenant}' lacks permission for dataset 'x'")


# ---------------------------------------------------------------------------------------------------- DELETE
async def test_deleting_takes_documents_chunks_and_files_along(api: Server) -> None:
    dataset = await api.dataset()
    await api.parsed(dataset)
    await api.document(dataset, "b.txt")
    assert (await api.call("DELETE", "/datasets", {"ids": [dataset]})).data == {"success_count": 1}
    assert (await api.call("GET", f"/datasets/{dataset}")).status == 404
    assert [path for path in (api.parts.settings.data_dir / "blobs").rglob("*") if path.is_file()] == []
    assert (await api.call("GET", "/datasets")).data == []


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"ids": ["x"]}, (101, 400, field("ids.0", "Invalid UUID format", "x"))),
        ({"ids": [UNKNOWN, UNKNOWN]}, (101, 400, field("ids", f"Duplicate ids: '{UNKNOWN}'", [UNKNOWN, UNKNOWN]))),
        ({"ids": "x"}, (101, 400, field("ids", "Input should be a valid list", "x"))),
        ({"delete_all": 1}, (101, 400, field("delete_all", "Input should be a valid boolean", 1))),
    ],
)
async def test_a_deletion_that_does_not_fit_deletes_nothing(api: Server, body: dict[str, Any], outcome: tuple[int, int, str]) -> None:
    await api.dataset()
    assert (await api.call("DELETE", "/datasets", body)).outcome == outcome
    assert (await api.call("GET", "/datasets")).body["total_datasets"] == 1


async def test_an_unknown_id_among_others_deletes_nothing(api: Server) -> None:
    dataset = await api.dataset()
    answer = await api.call("DELETE", "/datasets", {"ids": [dataset, UNKNOWN, "f" * 32]})
    assert answer.outcome == (102, 404, f"User '{api.tenant}' lacks permission for datasets: '{UNKNOWN}, {'f' * 32}'")
    assert (await api.call("GET", "/datasets")).body["total_datasets"] == 1


@pytest.mark.parametrize("body", [{}, {"ids": None}, {"ids": []}])
async def test_no_ids_mean_nothing_and_not_everything(api: Server, body: dict[str, Any]) -> None:
    await api.dataset()
    assert (await api.call("DELETE", "/datasets", body)).data == {"success_count": 0}
    assert (await api.call("GET", "/datasets")).body["total_datasets"] == 1


async def test_delete_all_deletes_a_thousand_of_ones_own(api: Server) -> None:
    await asyncio.gather(*(api.dataset(f"d{number}") for number in range(1000)))
    theirs = await api.dataset("theirs", key=api.other_key)
    assert (await api.call("DELETE", "/datasets", {"delete_all": True})).data == {"success_count": 1000}
    assert (await api.call("GET", f"/datasets/{theirs}", key=api.other_key)).status == 200


async def test_uploads_of_a_deleted_dataset_leave_no_file(api: Server) -> None:
    body, content_type = multipart(("file", "a.txt", b"x"))
    answer = await api.call("POST", f"/datasets/{UNKNOWN}/documents", data=body, headers={"Content-Type": content_type})
    assert answer.outcome == (102, 404, f"Can't find the dataset with ID {UNKNOWN}!")
    assert not (api.parts.settings.data_dir / "blobs").exists()
