"""rag/flow/related.py and metadata_filter.py: small tasks for the model, read strictly."""

import pytest

from rag.flow.metadata_filter import choose_conditions
from rag.flow.related import related_headings, related_questions
from tests.rag.flow.passages import IRON, WATER, ranked
from tests.rag.flow.scripted import ScriptedModel


async def test_numbered_lines_are_the_questions_and_the_rest_is_talk() -> None:
    reply = "Sure!\n1. Why does water boil?\n2. What is steam?\n- not one\n3.no blank\n10. two digits\nBye"
    assert await related_questions("water", ScriptedModel(replies=[reply])) == ["Why does water boil?", "What is steam?"]


def test_without_a_model_the_nearest_headings_are_proposed_but_not_the_question_itself() -> None:
    chunks = [
        ranked(WATER, 0, headings=("Heat", "Boiling water")),
        ranked(IRON, 1, headings=("Heat", "Melting metals", "x" * 200)),
        ranked(WATER, 2),
    ]
    assert related_headings("boiling of water", chunks) == ["Heat", "Melting metals"]


@pytest.mark.parametrize(
    ("reply", "conditions"),
    [
        ('{"logic": "or", "conditions": [{"name": "year", "comparison_operator": "is", "value": "2024"}]}', ["year"]),
        ('Here:\n```json\n{"conditions": [{"name": "year", "comparison_operator": ">", "value": 1}, {"name": "evil", '
         '"comparison_operator": "is", "value": 1}, "x"]}\n```', ["year"]),
        ('{"conditions": []}', None),
        ('{"conditions": "none"}', None),
        ("[1, 2]", None),
        ("{broken", None),
        ("", None),
    ],
)  # fmt: skip
async def test_only_conditions_on_known_keys_are_taken(reply: str, conditions: list[str] | None) -> None:
    chosen = await choose_conditions(ScriptedModel(replies=[reply]), "what happened in 2024?", {"year": ["2023", "2024"]})
    assert (chosen and [item["name"] for item in chosen["conditions"]]) == conditions


async def test_without_metadata_the_model_is_not_asked() -> None:
    assert await choose_conditions(ScriptedModel(), "when?", {}) is None
