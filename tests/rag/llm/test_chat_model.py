"""Chat models: the wire format's corners against the simulator, and a real llama.cpp server."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest

from load.vendor_simulator import Behaviour, VendorSimulator
from rag.errors import ProviderBadReply, ProviderError, ProviderUnreachable
from rag.llm.breaker import CircuitOpen
from rag.llm.chat_model import OpenAIChatModel
from rag.llm.endpoint import Endpoint, openai_url
from rag.llm.resilience import Guard
from rag.llm.transport import Transport
from rag.types import ChatDelta, ChatMessage, ChatOptions, Usage

ASK = (ChatMessage("system", "be brief"), ChatMessage("user", "when does water boil"))

Open = Callable[..., OpenAIChatModel]


@pytest.fixture
def open_model(transport: Transport) -> Open:
    def make(base_url: str, timeout_seconds: float = 20.0) -> OpenAIChatModel:
        endpoint = Endpoint("tiny@Acme", openai_url(base_url, "chat/completions"), timeout_seconds=timeout_seconds)
        return OpenAIChatModel("tiny", endpoint, transport, Guard("tiny@Acme", 4, timeout_seconds), context_tokens=2048)

    return make


async def collect(model: OpenAIChatModel, options: ChatOptions = ChatOptions()) -> list[ChatDelta]:  # noqa: B008 - frozen
    async with aclosing(model.stream(ASK, options)) as deltas:
        return [delta async for delta in deltas]


def text(deltas: list[ChatDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def reasoning(deltas: list[ChatDelta]) -> str:
    return "".join(delta.reasoning for delta in deltas)


def event(content: str | None = None, finish_reason: str | None = None) -> dict:
    return {"choices": [{"delta": {"content": content}, "finish_reason": finish_reason}]}


async def test_the_request_carries_messages_and_only_the_options_given(vendor: VendorSimulator, open_model: Open) -> None:
    await collect(open_model(vendor.base_url), ChatOptions(temperature=0.0, max_tokens=9))
    (request,) = vendor.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "when does water boil"}],
        "temperature": 0.0,
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_stream_gives_reasoning_then_text_then_usage_and_finish_reason(vendor: VendorSimulator, open_model: Open) -> None:
    vendor.behaviour = Behaviour(reasoning=("Let me ", "see."))
    deltas = await collect(open_model(vendor.base_url))
    assert reasoning(deltas) == "Let me see."
    assert text(deltas) == "Water boils at 100 °C."
    assert deltas[-1] == ChatDelta(usage=Usage(6, 5, 2), finish_reason="stop")
    for delta in deltas[:-1]:
        assert bool(delta.text) != bool(delta.reasoning)


async def test_a_whole_answer_has_the_same_parts(vendor: VendorSimulator, open_model: Open) -> None:
    vendor.behaviour = Behaviour(reasoning=("Let me see.",))
    reply = await open_model(vendor.base_url).complete(ASK, ChatOptions())
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("Water boils at 100 °C.", "Let me see.", "stop")
    assert reply.usage == Usage(6, 4, 1)
    assert "stream" not in vendor.requests[0].body


async def test_think_tags_in_the_content_are_reasoning(vendor: VendorSimulator, open_model: Open) -> None:
    vendor.behaviour = Behaviour(words=("<th", "ink>hm", "m</thi", "nk>\n", "\nYes: <think> is a tag."))
    deltas = await collect(open_model(vendor.base_url))
    assert reasoning(deltas) == "hmm"
    assert text(deltas) == "Yes: <think> is a tag."
    reply = await open_model(vendor.base_url).complete(ASK, ChatOptions())
    assert (reply.reasoning, reply.text) == ("hmm", "Yes: <think> is a tag.")


async def test_an_endpoint_that_does_not_stream_is_understood(vendor: VendorSimulator, open_model: Open) -> None:
    whole = {"choices": [{"message": {"content": "All at once."}, "finish_reason": "length"}], "usage": {"prompt_tokens": 1}}
    vendor.behaviour = Behaviour(failure="not_streamed", reply=lambda body: whole)
    deltas = await collect(open_model(vendor.base_url))
    assert text(deltas) == "All at once."
    assert deltas[-1] == ChatDelta(usage=Usage(prompt_tokens=1), finish_reason="length")


async def test_an_event_without_choices_is_skipped(vendor: VendorSimulator, open_model: Open) -> None:
    vendor.behaviour = Behaviour(events=({"choices": [], "prompt_filter_results": []}, event("Yes."), event(finish_reason="stop")))
    assert text(await collect(open_model(vendor.base_url))) == "Yes."


async def test_a_stream_that_only_says_done_is_complete(vendor: VendorSimulator, open_model: Open) -> None:
    vendor.behaviour = Behaviour(events=(event("Yes."),))
    assert (await collect(open_model(vendor.base_url)))[-1].finish_reason == "stop"


async def test_a_stream_that_breaks_off_is_an_error_not_a_short_answer(vendor: VendorSimulator, open_model: Open) -> None:
    vendor.behaviour = Behaviour("broken_off")
    with pytest.raises(ProviderBadReply, match="broke off"):
        await collect(open_model(vendor.base_url))


@pytest.mark.parametrize("reply", [None, [], "text", {}, {"choices": None}, {"choices": [None]}, {"choices": [{"text": "old"}]}])
async def test_a_reply_of_another_shape_is_refused(vendor: VendorSimulator, open_model: Open, reply: object) -> None:
    vendor.behaviour = Behaviour(reply=lambda body: reply)
    with pytest.raises(ProviderBadReply):
        await open_model(vendor.base_url).complete(ASK, ChatOptions())


@pytest.mark.parametrize("choice", [{"delta": "text"}, {"delta": ["text"]}, {"message": 1}])
async def test_an_event_of_another_shape_is_refused_and_its_endpoint_left_alone(
    vendor: VendorSimulator, open_model: Open, choice: dict
) -> None:
    vendor.behaviour = Behaviour(events=({"choices": [choice]}, event(finish_reason="stop")))
    model = open_model(vendor.base_url)
    for _ in range(5):
        with pytest.raises(ProviderBadReply):
            await collect(model)
    with pytest.raises(CircuitOpen):
        await collect(model)
    assert len(vendor.requests) == 5


@pytest.mark.parametrize("reason", [True, 7, ["stop"], {"why": "stop"}])
async def test_a_finish_reason_that_is_no_text_is_not_given_on(vendor: VendorSimulator, open_model: Open, reason: object) -> None:
    last = {"choices": [{"delta": {"content": "Yes."}, "finish_reason": reason}]}
    vendor.behaviour = Behaviour(events=(last,))
    assert (await collect(open_model(vendor.base_url)))[-1].finish_reason == "stop"


@pytest.mark.parametrize("failure", ["reset_mid_stream", "error_event", "hang_mid_stream", "trickle"])
async def test_nothing_is_sent_again_after_the_first_piece(vendor: VendorSimulator, open_model: Open, failure: str) -> None:
    vendor.behaviour = Behaviour(failure)
    with pytest.raises(ProviderError):
        await collect(open_model(vendor.base_url, timeout_seconds=0.3))
    assert len(vendor.requests) == 1


async def test_a_connection_lost_before_the_answer_is_tried_once_more(vendor: VendorSimulator, open_model: Open) -> None:
    vendor.script = [Behaviour("reset"), Behaviour(), Behaviour("reset"), Behaviour()]
    model = open_model(vendor.base_url)
    assert text(await collect(model)) == "Water boils at 100 °C."
    assert (await model.complete(ASK, ChatOptions())).text == "Water boils at 100 °C."
    assert len(vendor.requests) == 4


async def test_a_vendor_that_never_connects_fails_after_two_attempts(vendor: VendorSimulator, open_model: Open) -> None:
    vendor.behaviour = Behaviour("reset")
    with pytest.raises(ProviderUnreachable):
        await collect(open_model(vendor.base_url))
    assert len(vendor.requests) == 2


async def test_closing_the_stream_frees_the_vendor_and_the_turn(vendor: VendorSimulator, open_model: Open) -> None:
    model = open_model(vendor.base_url)
    vendor.behaviour = Behaviour("hang_mid_stream")
    for _ in range(5):  # one more than the guard's turns
        vendor.hung_up.clear()
        async with aclosing(model.stream(ASK, ChatOptions())) as deltas:
            await anext(deltas)
        await asyncio.wait_for(vendor.hung_up.wait(), 1)


async def test_a_real_model_streams_and_answers_whole(chat_server: str, open_model: Open) -> None:
    model = open_model(chat_server)
    options = ChatOptions(temperature=0.0, max_tokens=8)
    deltas = await collect(model, options)
    assert sum(bool(delta.text) for delta in deltas) > 1
    assert deltas[-1].usage.completion_tokens == 8
    assert deltas[-1].finish_reason == "length"
    reply = await model.complete(ASK, options)
    assert reply.text == text(deltas)
    assert reply.usage.prompt_tokens == deltas[-1].usage.prompt_tokens > 0


async def test_a_real_model_that_is_asked_too_much_refuses(chat_server: str, open_model: Open) -> None:
    with pytest.raises(ProviderError):
        await open_model(chat_server).complete([ChatMessage("user", "word " * 5000)], ChatOptions())
