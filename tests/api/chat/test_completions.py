"""The completion routes: texts, frames byte for byte, history, and turns that are saved once."""

import asyncio
import json
import re
from typing import Any

import pytest

from rag.flow.extract import NOTICE
from tests.api.chat.conftest import IRON, MODEL, NO_MODEL, WATER, Server, read_frames

QUESTION = {"question": "When does water boil at sea level?"}
LAST = {"code": 0, "message": "", "data": True}
REFERENCE_KEYS = {
    "id", "content", "document_id", "document_name", "dataset_id", "image_id", "positions", "url", "similarity", "vector_similarity",
    "term_similarity", "row_id", "doc_type", "document_metadata",
}  # fmt: skip
USER = {"role": "user", "content": "hi"}

REFUSED: list[tuple[dict[str, Any], int, int, str]] = [
    ({}, 400, 101, "required argument are missing: messages"),
    ({"messages": []}, 400, 101, "`messages` must be a non-empty list."),
    ({"messages": "hi"}, 400, 101, "`messages` must be a non-empty list."),
    ({"messages": ["hi"]}, 400, 101, "Every item in `messages` must be an object."),
    ({"messages": [{"role": "user"}]}, 400, 101, "Every item in `messages` must include `role` and `content`."),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, 101, "`messages` must contain a user message."),
    ({"messages": [USER, {"role": "assistant", "content": "x"}]}, 400, 101, "The last message must be from user."),
    (
        QUESTION | {"store_history_messages": False},
        400, 102, "`pass_all_history_messages` must be true when `store_history_messages` is false.",
    ),
    (QUESTION | {"store_history": False}, 400, 102, "`pass_all_history_messages` must be true when `store_history_messages` is false."),
    (QUESTION | {"session_id": "s"}, 400, 102, "`chat_id` is required when `session_id` is provided."),
    (QUESTION | {"chat_id": "0" * 32}, 403, 109, "no authorization"),
    (QUESTION | {"llm_id": "nope@Sim"}, 404, 102, "Cannot use specified model nope@Sim."),
    ({"question": 7}, 400, 101, "`question` should be a string"),
    ({"question": ""}, 400, 101, "`question` must not be empty"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, 101, "`content` of the last message must not be empty"),
    ({"messages": [USER] * 2_001}, 400, 101, "`messages` must contain at most 2000 messages"),
    (QUESTION | {"doc_ids": 7}, 400, 101, "`doc_ids` should be a string of ids separated by commas, or a list of them"),
    (QUESTION | {"doc_ids": [7]}, 400, 101, "`doc_ids` should be a string of ids separated by commas, or a list of them"),
    (QUESTION | {"temperature": "hot", "llm_id": MODEL}, 400, 101, "`temperature` should be a number"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code", "message"), REFUSED)
async def test_a_question_is_refused_before_the_stream(server: Server, body: dict[str, Any], status: int, code: int, message: str) -> None:
    found = await server.call("POST", "/chat/completions", body)
    assert (found[0], found[1]["code"], found[1]["message"]) == (status, code, message)
    assert server.prompts == []


async def test_sessions_must_be_the_chats_own(server: Server) -> None:
    chat, other = await server.chat("a"), await server.chat("b")
    session = (await server.data("POST", f"/chats/{other}/sessions", {}))["id"]
    for wrong, message in (("0" * 32, "Session not found!"), (session, "Session does not belong to this chat!")):
        for body in ({"session_id": wrong}, {"conversation_id": wrong}):
            found = await server.call("POST", f"/chats/{chat}/completions", QUESTION | body)
            assert found == (404, {"code": 102, "data": None, "message": message})
    status, answer = await server.call("POST", f"/chats/{chat}/completions", QUESTION, key=server.other_key)
    assert (status, answer) == (403, {"code": 109, "data": False, "message": "no authorization"})


async def test_a_question_that_is_refused_is_not_saved(server: Server) -> None:
    chat = await server.chat()
    session = (await server.data("POST", f"/chats/{chat}/sessions", {}))["id"]
    for body in ({"question": 3}, {"question": ""}, QUESTION | {"doc_ids": 3}):
        assert (await server.call("POST", f"/chats/{chat}/completions", body | {"session_id": session}))[0] == 400
    assert len((await server.data("GET", f"/chats/{chat}/sessions/{session}"))["messages"]) == 1
    assert len(await server.data("GET", f"/chats/{chat}/sessions")) == 1


async def test_documents_must_be_of_the_chats_datasets(server: Server) -> None:
    chat = await server.grounded_chat()
    foreign = (await server.grounded_chat("other"), "0" * 32)
    for document in foreign:
        found = await server.call("POST", f"/chats/{chat}/completions", QUESTION | {"doc_ids": [document]})
        assert found == (404, {"code": 102, "data": None, "message": f"The datasets don't own the document {document}"})
    assert await server.data("GET", f"/chats/{chat}/sessions") == []


async def test_an_answer_says_what_it_had_to_do_without_and_why(server: Server) -> None:
    server.says("It boils.")
    chat = await server.grounded_chat(rerank_id="BAAI/bge-reranker-v2-m3")
    missing = {"degraded": ["rerank"], "reasons": {"rerank": "the model is not configured"}}
    answer = await server.data("POST", f"/chats/{chat}/completions", QUESTION | {"stream": False})
    assert {key: answer[key] for key in missing} == missing
    frames = await server.stream(f"/chats/{chat}/completions", QUESTION)
    assert {key: frames[-2]["data"][key] for key in missing} == missing
    assert frames[-2]["data"]["reference"]["chunks"]


async def test_variables_of_the_prompt_come_from_the_request(server: Server) -> None:
    parameters = [{"key": "tone", "optional": False}, {"key": "extra", "optional": True}]
    chat = await server.chat(prompt_config={"system": "Be {tone}{extra}on {date}. {other}", "parameters": parameters})
    assert await server.call("POST", "/chat/completions", QUESTION | {"chat_id": chat}) == (
        400, {"code": 101, "data": None, "message": "Miss parameter: tone"},
    )  # fmt: skip
    await server.stream("/chat/completions", QUESTION | {"chat_id": chat, "tone": "kind"})
    assert re.fullmatch(r"Be kind on \d{4}-\d\d-\d\d\. \{other\}", server.prompts[0][0]["content"])


async def test_a_stream_is_byte_for_byte_the_contracts(server: Server) -> None:
    server.says("Water boils ", "at 100 °C — 水 ", "at sea level [ID:0].")
    chat = await server.grounded_chat()
    session = (await server.data("POST", f"/chats/{chat}/sessions", {}))["id"]
    question = {"role": "user", "content": QUESTION["question"], "id": "m1"}
    body = {"messages": [question], "chat_id": chat, "session_id": session}
    response = await server.raw("POST", "/chat/completions", body)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    names = ("Cache-Control", "Connection", "X-Accel-Buffering")
    assert [response.headers[name] for name in names] == ["no-cache", "keep-alive", "no"]
    raw = (await response.get_data()).decode()
    ids = f'"id":"m1","session_id":"{session}","chat_id":"{chat}"'
    first, *_ = raw.split("\n\n")
    empty = '"reference":{"chunks":[]},"audio_binary":null,"final":false'
    assert first == f'data:{{"code":0,"message":"","data":{{"answer":"Water boils","{empty[1:]},{ids}}}}}'
    assert "°C — 水" in raw
    assert raw.endswith('\n\ndata:{"code":0,"message":"","data":true}\n\n')
    *deltas, final, last = read_frames(raw.encode())
    assert last == LAST
    assert all(frame["data"]["final"] is False for frame in deltas)
    assert "".join(frame["data"]["answer"] for frame in deltas) == "Water boils at 100 °C — 水 at sea level [ID:0]."
    data = final["data"]
    assert data.keys() == {"answer", "reference", "audio_binary", "prompt", "created_at", "final", "id", "session_id", "chat_id"}
    assert (data["answer"], data["final"], data["audio_binary"]) == ("", True, None)
    assert data["prompt"].startswith("### system")
    assert isinstance(data["created_at"], float)
    reference = data["reference"]
    assert reference.keys() == {"total", "chunks", "doc_aggs"}
    assert reference["total"] >= 1
    assert all(chunk.keys() == REFERENCE_KEYS for chunk in reference["chunks"])
    cited = reference["chunks"][0]
    assert (cited["content"], cited["document_name"], cited["url"], cited["document_metadata"]) == (WATER, "assistant facts.md", None, None)
    assert reference["doc_aggs"] == [{"doc_name": "assistant facts.md", "doc_id": cited["document_id"], "count": len(reference["chunks"])}]


async def test_a_model_that_cites_wrongly_is_corrected_on_the_way(server: Server) -> None:
    server.says("Water boils at 100 °C at sea level [ID:9]. ", "Iron melts at 1538 °C [ID:0][ID:1]. ")
    chat = await server.grounded_chat()
    answer = await server.data("POST", f"/chats/{chat}/completions", QUESTION | {"stream": False})
    numbers = {chunk["content"]: number for number, chunk in enumerate(answer["reference"]["chunks"])}
    first, second = answer["answer"].split(". ", 1)
    assert first.endswith(f"[ID:{numbers[WATER]}]")
    assert (f"[ID:{numbers[IRON]}]" in second, f"[ID:{numbers[WATER]}]" in second) == (True, False)
    assert "[ID:9]" not in answer["answer"]


async def test_without_a_stream_the_answer_comes_whole(server: Server) -> None:
    server.says("It boils ", "at 100 °C.", reasoning=("hmm",))
    chat = await server.grounded_chat()
    answer = await server.data("POST", f"/chats/{chat}/completions", QUESTION | {"stream": False})
    assert answer.keys() == {"answer", "reference", "prompt", "created_at", "audio_binary", "id", "session_id", "chat_id"}
    assert answer["answer"].startswith("It boils at 100 °C")
    assert (answer["chat_id"], len(answer["session_id"]), len(answer["id"])) == (chat, 32, 32)


async def test_reasoning_stands_between_its_borders(server: Server) -> None:
    server.says("Yes", reasoning=("let ", "me"))
    chat = await server.grounded_chat()
    frames = await server.stream(f"/chats/{chat}/completions", QUESTION)
    told = [(f["data"]["answer"], f["data"].get("start_to_think"), f["data"].get("end_to_think")) for f in frames[:-2]]
    assert told == [("", True, None), ("let ", None, None), ("me", None, None), ("", None, True), ("Yes", None, None)]


async def test_legacy_answers_are_cumulative_and_the_last_says_all_again(server: Server) -> None:
    server.says("Yes", " no", reasoning=("let ", "me"))
    chat = await server.grounded_chat()
    *frames, last = await server.stream(f"/chats/{chat}/completions", QUESTION | {"legacy": True})
    answers = [frame["data"]["answer"] for frame in frames]
    whole = "<think>let me</think>Yes no"
    assert answers == ["<think>let ", "<think>let me", "<think>let me</think>Yes", whole, whole]
    assert (frames[-1]["data"]["final"], len(frames[-1]["data"]["reference"]["chunks"])) == (True, 2)
    assert last == LAST


async def test_nothing_found_says_the_empty_response_twice_and_asks_no_model(server: Server) -> None:
    chat = await server.grounded_chat(prompt_config={"empty_response": "Nothing <here> & there"}, similarity_threshold=0.99)
    delta, final, last = await server.stream(f"/chats/{chat}/completions", {"question": "zebra crossings"})
    assert delta["data"]["answer"] == final["data"]["answer"] == "Nothing &lt;here&gt; &amp; there"
    assert (delta["data"]["final"], final["data"]["final"], last) == (False, True, LAST)
    assert final["data"]["reference"] == {"total": 0, "chunks": [], "doc_aggs": []}
    assert server.prompts == []


async def test_a_chat_without_datasets_has_deltas_and_the_last_frame_only(server: Server) -> None:
    server.says("Hello ", "there")
    chat = await server.chat(prompt_config={"system": "Be brief."})
    *deltas, last = await server.stream(f"/chats/{chat}/completions", QUESTION)
    assert [frame["data"]["answer"] for frame in deltas] == ["Hello", " there"]
    assert all(frame["data"]["prompt"] == "" and isinstance(frame["data"]["created_at"], float) for frame in deltas)
    assert last == LAST
    assert server.prompts[0][0] == {"role": "system", "content": "Be brief."}


async def test_without_a_chat_the_model_alone_answers_the_posted_messages(server: Server) -> None:
    server.says("Hello")
    messages = [
        {"role": "system", "content": "x"},
        {"role": "assistant", "content": "y"},
        USER,
        {"role": "assistant", "content": "z"},
        USER,
    ]
    frames = await server.stream("/chat/completions", {"messages": messages})
    assert (frames[0]["data"]["chat_id"], frames[0]["data"]["session_id"], len(frames[0]["data"]["id"])) == ("", "", 32)
    assert server.prompts == [[USER, {"role": "assistant", "content": "z"}, USER]]


async def test_history_is_the_sessions_and_a_turn_is_saved_once(server: Server) -> None:
    server.says("Water boils at 100 °C at sea level [ID:0].")
    chat = await server.grounded_chat(prompt_config={"refine_multiturn": False, "system": "{knowledge}"})
    first = await server.stream(f"/chats/{chat}/completions", QUESTION)
    session = first[0]["data"]["session_id"]
    ignored = [{"role": "user", "content": "not in the history"}, {"role": "assistant", "content": "no"}]
    await server.stream(f"/chats/{chat}/completions", {"messages": [*ignored, USER], "session_id": session})
    prompt = server.prompts[-1]
    assert [message["content"] for message in prompt[1:]] == [QUESTION["question"], "Water boils at 100 °C at sea level.", "hi"]
    shown = await server.data("GET", f"/chats/{chat}/sessions/{session}")
    assert [message["role"] for message in shown["messages"]] == ["assistant", "user", "assistant", "user", "assistant"]
    question, answer = shown["messages"][1:3]
    assert question["id"] == answer["id"] == first[0]["data"]["id"]
    assert question["created_at"] <= answer["created_at"]
    assert len(shown["reference"]) == 2
    assert all(chunk.keys() == REFERENCE_KEYS for chunk in shown["reference"][0]["chunks"])


async def test_a_follow_up_is_condensed_with_the_model(server: Server) -> None:
    chat = await server.grounded_chat()
    session = (await server.stream(f"/chats/{chat}/completions", QUESTION))[0]["data"]["session_id"]
    await server.stream(f"/chats/{chat}/completions", {"question": "and iron?", "session_id": session})
    assert len(server.prompts) == 3
    assert "Last message of the user:\nand iron?" in server.prompts[1][1]["content"]


async def test_passing_all_history_replaces_the_sessions(server: Server) -> None:
    chat = await server.chat(prompt_config={"system": ""})
    session = (await server.data("POST", f"/chats/{chat}/sessions", {}))["id"]
    server.says("answer")
    posted = [USER | {"content": "one"}, {"role": "assistant", "content": "two"}, USER | {"content": "three"}]
    await server.stream(f"/chats/{chat}/completions", {"messages": posted, "session_id": session, "pass_all_history_messages": True})
    shown = await server.data("GET", f"/chats/{chat}/sessions/{session}")
    assert [message["content"] for message in shown["messages"]] == ["one", "two", "three", "answer"]


async def test_without_storing_nothing_is_kept(server: Server) -> None:
    chat = await server.chat()
    body = {"messages": [USER], "pass_all_history_messages": True, "store_history_messages": False}
    frames = await server.stream(f"/chats/{chat}/completions", body)
    assert frames[0]["data"]["session_id"] == ""
    assert await server.data("GET", f"/chats/{chat}/sessions") == []


async def test_parallel_turns_of_a_session_are_all_kept_untorn(server: Server) -> None:
    chat = await server.chat()
    session = (await server.data("POST", f"/chats/{chat}/sessions", {}))["id"]
    questions = [f"question {number}" for number in range(12)]
    path = f"/chats/{chat}/completions"
    await asyncio.gather(*(server.stream(path, {"question": question, "session_id": session}) for question in questions))
    messages = (await server.data("GET", f"/chats/{chat}/sessions/{session}"))["messages"][1:]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 12
    assert sorted(message["content"] for message in messages[::2]) == sorted(questions)
    assert all(question["id"] == answer["id"] for question, answer in zip(messages[::2], messages[1::2], strict=True))


async def test_sampling_options_are_the_chats_unless_it_has_none_or_another_model_is_named(server: Server) -> None:
    with_own = await server.chat("a", llm_setting={"temperature": 0.1, "max_tokens": 9, "top_p": "wrong", "top_p_enabled": False})
    without = await server.chat("b")
    sent = {"temperature": 0.9, "presence_penalty": 0.5}
    for chat, extra, temperature in ((with_own, {}, 0.1), (with_own, {"llm_id": "alias"}, 0.9), (without, {}, 0.9)):
        await server.stream(f"/chats/{chat}/completions", QUESTION | sent | extra)
        asked = server.vendor.requests[-1].body
        assert (asked["temperature"], asked["presence_penalty"]) == (temperature, 0.5)
        assert asked.get("max_tokens") == (9 if chat == with_own else None)
        assert "top_p" not in asked


@pytest.mark.parametrize("failure", ["reset", "html", "error_body", "truncated"])
async def test_a_failing_model_is_one_error_frame_of_our_own_words_and_the_last_frame(server: Server, failure: str) -> None:
    chat = await server.grounded_chat(vector_similarity_weight=0)
    server.says(failure=failure)
    *before, error, last = await server.stream(f"/chats/{chat}/completions", QUESTION)
    assert before == []
    text = error["message"]
    assert error == {"code": 500, "message": text, "data": {"answer": f"**ERROR**: {text}", "reference": []}}
    assert "chatty" in text
    assert "vendor says" not in text
    assert last == LAST
    status, answer = await server.call("POST", f"/chats/{chat}/completions", QUESTION | {"stream": False})
    assert (status, answer["code"]) == (503, 503)
    assert "vendor says" not in json.dumps(answer)


async def test_a_stream_that_breaks_says_so_after_what_was_sent_and_saves_that(server: Server) -> None:
    chat = await server.grounded_chat(vector_similarity_weight=0)
    server.says("Water boils", " never ", "said", failure="reset_mid_stream")
    *deltas, error, last = await server.stream(f"/chats/{chat}/completions", QUESTION)
    assert "".join(frame["data"]["answer"] for frame in deltas) == "Water boils"
    assert (error["code"], last) == (500, LAST)
    shown = await server.data("GET", f"/chats/{chat}/sessions/{deltas[0]['data']['session_id']}")
    assert [message["content"] for message in shown["messages"][1:]] == [QUESTION["question"], "Water boils"]


async def test_documents_can_be_chosen_by_id_and_metadata(server: Server) -> None:
    old = await server.dataset("old", "Water boils at ninety degrees.", year="1999")
    new = await server.dataset("new", WATER, year="2024")
    by_year = {"method": "manual", "manual": [{"key": "year", "op": "is", "value": "2024"}]}
    everywhere, filtered = (
        await server.chat("a", dataset_ids=[old, new]),
        await server.chat("b", dataset_ids=[old, new], meta_data_filter=by_year),
    )

    async def found(chat: str, **extra: Any) -> dict[str, str]:
        answer = await server.data("POST", f"/chats/{chat}/completions", QUESTION | {"stream": False} | extra)
        return {chunk["document_name"]: chunk["document_id"] for chunk in answer["reference"]["chunks"]}

    documents = await found(everywhere)
    assert documents.keys() == {"old.md", "new.md"}
    assert (await found(everywhere, doc_ids=documents["old.md"])).keys() == {"old.md"}
    assert (await found(filtered)).keys() == {"new.md"}
    assert (await found(filtered, doc_ids=documents["old.md"])).keys() == set()


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ({"method": "auto"}, {"year": ["1999", "2024"], "author": ["Ada"]}),
        ({"method": "semi_auto", "semi_auto": ["year", {"key": "unknown"}, ["year"], 5]}, {"year": ["1999", "2024"]}),
    ],
)
async def test_the_model_chooses_documents_by_metadata_as_it_is_now(server: Server, stored: dict[str, Any], shown: dict[str, Any]) -> None:
    old = await server.dataset("old", "Water boils at ninety degrees.", year="1999")
    new = await server.dataset("new", WATER, year="2024", author="Ada")
    chat = await server.chat("a", dataset_ids=[old, new], meta_data_filter=stored)
    server.says('{"conditions": [{"name": "year", "comparison_operator": "is", "value": "2024"}]}')

    async def ask() -> tuple[set[str], dict[str, Any]]:
        """Which documents are found, and what the model was shown of their metadata."""
        server.vendor.requests.clear()
        answer = await server.data("POST", f"/chats/{chat}/completions", QUESTION | {"stream": False})
        shown = server.prompts[0][-1]["content"].partition("Metadata:\n")[2].partition("\n\nQuestion:")[0]
        return {chunk["document_name"] for chunk in answer["reference"]["chunks"]}, json.loads(shown)

    assert await ask() == ({"new.md"}, shown)
    document = (await server.data("GET", f"/datasets/{old}/documents"))["docs"][0]["id"]
    status, _ = await server.call("PUT", f"/datasets/{old}/documents/{document}", {"meta_fields": {"year": "2024"}})
    assert status == 200
    assert await ask() == ({"old.md", "new.md"}, shown | {"year": ["2024"]})


async def test_a_part_that_fails_is_told_in_the_final_frame(server: Server) -> None:
    chat = await server.grounded_chat(rerank_id="BAAI/bge-reranker-v2-m3")
    frames = await server.stream(f"/chats/{chat}/completions", QUESTION)
    assert frames[-2]["data"]["degraded"] == ["rerank"]
    assert 'millrace_degraded_total{part="rerank"} 1.0' in server.parts.metrics.text().decode()


async def test_without_a_model_the_documents_are_quoted_with_citations(server: Server) -> None:
    chat = await server.grounded_chat(llm_id=NO_MODEL)
    *deltas, final, last = await server.stream(f"/chats/{chat}/completions", QUESTION)
    text = "".join(frame["data"]["answer"] for frame in deltas)
    assert text.startswith(NOTICE)
    number = [chunk["content"] for chunk in final["data"]["reference"]["chunks"]].index(WATER)
    assert f"Water boils at 100 °C at sea level. [ID:{number}]" in text
    assert len(deltas) >= 3
    assert last == LAST
    assert server.prompts == []
