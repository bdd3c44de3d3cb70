"""Bodies under the size limit that hold too much, and text that no name should have: a short refusal, in little time."""

import time
from typing import Any

import orjson
import pytest

from api import body
from tests.api.conftest import UNKNOWN, Server, multipart

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    "raw",
    [
        b"[" + b"1," * 2_000_000 + b"1]",
        b"[" + b"[]," * 2_000_000 + b"[]]",
        orjson.dumps({f"k{number}": 1 for number in range(500_000)}),
        b'{"name":"a","x":[' + b'"",' * 2_000_000 + b'""]}',
    ],
    ids=["numbers", "lists", "keys", "texts"],
)
async def test_json_of_too_many_values_is_refused_before_any_of_them_is_made(api: Server, raw: bytes) -> None:
    started = time.process_time()
    answer = await api.call("POST", "/datasets", data=raw, headers={"Content-Type": "application/json"})
    assert answer.outcome == (101, 400, "the request body holds more than 100000 values")
    assert time.process_time() - started < 0.5  # making them takes longer than that, telling them apart several seconds


@pytest.mark.parametrize("text", ["a,b,[{", '"', "\\", '\\"', "\\\\"], ids=["structure", "quote", "backslash", "both", "twice"])
async def test_what_stands_inside_a_long_text_does_not_count(api: Server, text: str) -> None:
    dataset = await api.dataset()
    answer = await api.call("POST", "/retrieval", {"question": text * 200_000, "dataset_ids": [dataset], "document_ids": []})
    assert answer.data["total"] == 0


@pytest.mark.parametrize(
    ("path", "sent", "message"),
    [
        ("/datasets", {"name": "a", "ext": {f"k{number}": 1 for number in range(1_001)}}, "`ext` must contain at most 1000 keys"),
        ("/datasets", {f"k{number}": 1 for number in range(1_001)}, "the request body must contain at most 1000 keys"),
        ("/retrieval", {"dataset_ids": [UNKNOWN] * 10_001}, "`dataset_ids` must contain at most 10000 entries"),
        ("/datasets", {"name": "a", "ext": {"deep": [[1] * 10_001]}}, "`deep` must contain at most 10000 entries"),
    ],
)
async def test_a_list_or_object_that_is_too_long_is_named(api: Server, path: str, sent: Any, message: str) -> None:
    assert (await api.call("POST", path, sent)).outcome == (101, 400, message)


async def test_of_many_errors_the_first_are_shown(api: Server) -> None:
    answer = await api.call("POST", "/datasets", {f"k{number}": ["x" * 100] * 10 for number in range(900)})
    lines = answer.body["message"].split("\n")
    assert len(lines) == 51
    assert lines[-1] == "and 851 more errors"  # with the name that is missing
    assert len(answer.body["message"]) < 15_000


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, None, "it's", {"b": 'say "x"', "c": {}}], "d": 1.5},
        [[], {}, [[True]]],
        ["x" * 500, 1],
        {"k" * 200: 1},
        list(range(1000)),
        "plain",
        12,
        None,
    ],
)
def test_a_value_is_shown_as_it_would_be_written_whole(value: Any) -> None:
    assert body._beginning(value)[:128] == str(value)[:128]
    assert (len(body._beginning(value)) > 128) == (len(str(value)) > 128)


@pytest.mark.parametrize("separator", [b"&", b"=&"])
async def test_a_form_of_too_many_fields_is_refused(api: Server, separator: bytes) -> None:
    answer = await api.call("POST", "/retrieval", data=b"a" + separator * 120_000, headers=FORM)
    assert answer.outcome == (101, 400, "the form must contain at most 1000 fields")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_a_form_that_takes_long_to_decode_is_refused(api: Server, kind: str) -> None:
    answer = await api.call("POST", "/retrieval", data=b"a=" + b"%41" * 100_000, headers={"Content-Type": kind})
    assert answer.outcome == (101, 413, "the request body exceeds 262144 bytes")


async def test_a_multipart_form_of_too_many_fields_is_refused(api: Server) -> None:
    raw, content_type = multipart(*[("a", None, b"x")] * 3_000)
    answer = await api.call("POST", "/retrieval", data=raw, headers={"Content-Type": content_type})
    assert answer.outcome == (101, 400, "the form must contain at most 1000 fields")


async def test_a_message_names_at_most_a_hundred_unknown_ids(api: Server) -> None:
    dataset = await api.dataset()
    ids = [f"{number:032x}" for number in range(10_000)]
    for method, path, sent in (
        ("DELETE", f"/datasets/{dataset}/documents", {"ids": ids}),
        ("DELETE", "/datasets", {"ids": ids}),
        ("POST", f"/datasets/{dataset}/chunks", {"document_ids": ids}),
        ("DELETE", "/chats", {"ids": ids}),
        ("POST", f"/datasets/{dataset}/metadata/update", {"selector": {"document_ids": ids}}),
    ):
        answer = await api.call(method, path, sent)
        assert (answer.status, answer.body["code"]) == (404, 102), path
        assert ids[99] in answer.body["message"], path
        assert ids[100] not in answer.body["message"], path


async def test_repeats_among_many_ids_are_found_in_time(api: Server) -> None:
    started = time.process_time()
    answer = await api.call("DELETE", "/datasets", {"ids": [f"{number % 9_999:032x}" for number in range(10_000)]})
    assert "Duplicate ids" in answer.body["message"]
    await api.call("DELETE", "/chats", {"ids": [f"{number % 9_999:032x}" for number in range(10_000)]})
    assert time.process_time() - started < 1.0  # comparing each with each takes seconds


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\x85", "a\nb"])
async def test_a_name_with_control_characters_is_refused(api: Server, character: str) -> None:
    name = f"a{character}b"
    dataset = await api.dataset()
    document = await api.document(dataset)
    chat = (await api.call("POST", "/chats", {"name": "chat"})).data["id"]
    refused = (101, 400, "`name` must not contain control characters")
    assert (await api.call("POST", "/chats", {"name": name})).outcome == refused
    assert (await api.call("POST", "/searches", {"name": name})).outcome == refused
    assert (await api.call("POST", f"/chats/{chat}/sessions", {"name": name})).outcome == refused
    assert (await api.call("PATCH", f"/datasets/{dataset}/documents/{document}", {"name": f"{name}.txt"})).outcome == refused
    code, status, text = (await api.call("POST", "/datasets", {"name": name})).outcome
    assert (code, status) == (101, 400)
    assert text.startswith("Field: <name> - Message: <String should not contain control characters> - Value: <")


async def test_a_file_name_with_control_characters_is_refused(api: Server) -> None:
    dataset = await api.dataset()
    answer = await api.upload(dataset, ("good.txt", b"x"), ("a\x1bb.txt", b"y"))
    assert answer.outcome == (101, 400, "`file` must not contain control characters")
    assert (await api.call("GET", f"/datasets/{dataset}/documents")).data["total"] == 0
