"""rag/flow/question.py: what a model makes of a question before it is searched."""

import pytest

from rag.flow.question import condense, keywords, translate
from rag.types import ChatMessage
from tests.rag.flow.scripted import ScriptedModel

TALK = (ChatMessage("user", "Who wrote Faust?"), ChatMessage("assistant", "Goethe."), ChatMessage("user", "When was he born?"))


async def test_a_follow_up_is_condensed_from_the_conversation() -> None:
    model = ScriptedModel(replies=['"When was Goethe born?"'])
    assert await condense(model, TALK) == "When was Goethe born?"
    task = model.asked[0][1].content
    assert "user: Who wrote Faust?\nassistant: Goethe." in task
    assert task.endswith("When was he born?")


@pytest.mark.parametrize("reply", ["", "   ", "x" * 5000], ids=["empty", "blank", "rambling"])
async def test_a_reply_that_is_no_question_leaves_the_question(reply: str) -> None:
    assert await condense(ScriptedModel(replies=[reply]), TALK) == "When was he born?"


async def test_keywords_are_bounded_and_plain() -> None:
    reply = '1. boiling point, "water", water，沸点\n- pressure; ' + ", ".join(f"word{n}" for n in range(20))
    found = await keywords(ScriptedModel(replies=[reply]), "when does water boil?")
    assert found[:4] == ("boiling point", "water", "沸点", "pressure")
    assert len(found) == 8


async def test_translations_come_one_a_line_and_no_more_than_asked_for() -> None:
    model = ScriptedModel(replies=["Wann kocht Wasser?\n\n水什么时候沸腾？\nextra talk"])
    assert await translate(model, "when does water boil?", ("German", "Chinese")) == ("Wann kocht Wasser?", "水什么时候沸腾？")
