"""db/services/metadata_conditions.py and metadata_service.py: conditions, summaries and changes, on plain values."""

from typing import Any

import pytest

from db.services.metadata_conditions import fulfils
from db.services.metadata_service import changed, summarise


def condition(name: str, operator: str, value: Any) -> dict[str, Any]:
    return {"conditions": [{"name": name, "comparison_operator": operator, "value": value}]}


META = {"title": "Blue Book", "year": 2024, "price": "9.5", "on": "2024-05-01", "tags": ["Red", "green"], "blank": "", "good": True}


@pytest.mark.parametrize(
    ("name", "operator", "value", "holds"),
    [
        ("title", "is", "blue book", True),
        ("title", "=", "Blue", False),
        ("title", "not is", "x", True),
        ("title", "!=", "BLUE BOOK", False),
        ("title", "≠", "x", True),
        ("title", "contains", "ue b", True),
        ("title", "not contains", "red", True),
        ("title", "start with", "BLUE", True),
        ("title", "end with", "book", True),
        ("title", "in", "x,Blue Book", True),
        ("title", "in", ["x", "blue book"], True),
        ("title", "not in", ["x"], True),
        ("title", ">", 5, True),  # as text
        ("year", ">", 2023, True),
        ("year", ">", "2023", True),
        ("year", "<", "999", False),
        ("year", ">=", 2024, True),
        ("year", "≥", 2025, False),
        ("year", "<=", 2024, True),
        ("year", "≤", 2023, False),
        ("year", "in", "2023,2024", True),
        ("year", "is", "2024", True),
        ("price", ">", 9, True),
        ("price", "<", "10", True),
        ("on", ">", "2024-04-30", True),
        ("on", "<", "2024-04-30", False),
        ("year", ">", "2024-04-30", False),  # a date is compared with dates only
        ("tags", "is", "red", True),
        ("tags", "is", "blue", False),
        ("tags", "contains", "gre", True),
        ("blank", "empty", "", True),
        ("title", "empty", "", False),
        ("title", "not empty", "", True),
        ("good", "is", "true", True),
        ("good", "is", True, True),
        ("nothing", "≠", "x", False),
        ("nothing", "empty", "", False),
        ("title", "resembles", "x", False),
    ],
)
def test_operators(name: str, operator: str, value: Any, holds: bool) -> None:
    assert fulfils(META, condition(name, operator, value)) is holds


def test_conditions_are_joined_and_none_match_nothing() -> None:
    items = [*condition("year", "is", 2024)["conditions"], *condition("title", "is", "x")["conditions"]]
    assert not fulfils(META, {"conditions": items})
    assert not fulfils(META, {"logic": "and", "conditions": items})
    assert fulfils(META, {"logic": "or", "conditions": items})
    for none in ({"conditions": []}, {"logic": "or"}, {"conditions": "x"}, {"conditions": [{"name": "year"}]}, {"conditions": ["x"]}):
        assert not fulfils(META, none)


@pytest.mark.parametrize("value", ["[" * 5000, "(" * 200, "{'a':", "1" * 5000, "__import__('os')", "'", "-", "1e999999"])
def test_odd_values_are_only_text(value: str) -> None:
    assert fulfils({"a": value}, condition("a", "is", value))
    assert not fulfils({"a": "x"}, condition("a", "is", value))


def test_a_summary_names_types_by_majority_and_counts_elements() -> None:
    metas = [{"a": 1, "t": ["x", "y"], "on": "2024-01-02T03:04:05", "b": True}, {"a": 2, "t": ["x"]}, {"a": "one, two"}]
    assert summarise((key, value, 1) for meta in metas for key, value in meta.items()) == {
        "a": {"type": "number", "values": [["1", 1], ["2", 1], ["one, two", 1]]},
        "t": {"type": "list", "values": [["x", 2], ["y", 1]]},
        "on": {"type": "time", "values": [["2024-01-02T03:04:05", 1]]},
        "b": {"type": "string", "values": [["True", 1]]},
    }


@pytest.mark.parametrize(
    ("updates", "deletes", "after"),
    [
        ([{"key": "n", "value": 1}], [], {"a": "x", "l": ["p", "q"], "n": 1}),
        ([{"key": "n", "value": 1, "match": "x"}], [], {"a": "x", "l": ["p", "q"]}),
        ([{"key": "a", "value": "y"}], [], {"a": "y", "l": ["p", "q"]}),
        ([{"key": "a", "value": "y", "match": "x"}], [], {"a": "y", "l": ["p", "q"]}),
        ([{"key": "a", "value": "y", "match": "z"}], [], {"a": "x", "l": ["p", "q"]}),
        ([{"key": "l", "value": ["q", "r"]}], [], {"a": "x", "l": ["p", "q", "r"]}),
        ([{"key": "l", "value": "z", "match": "p"}], [], {"a": "x", "l": ["z", "q"]}),
        ([], [{"key": "a"}], {"l": ["p", "q"]}),
        ([], [{"key": "a", "value": "x"}], {"l": ["p", "q"]}),
        ([], [{"key": "a", "value": "z"}], {"a": "x", "l": ["p", "q"]}),
        ([], [{"key": "l", "value": "p"}], {"a": "x", "l": ["q"]}),
        ([], [{"key": "nothing"}], {"a": "x", "l": ["p", "q"]}),
    ],
)
def test_changes(updates: list[dict[str, Any]], deletes: list[dict[str, Any]], after: dict[str, Any]) -> None:
    assert changed({"a": "x", "l": ["p", "q"]}, updates, deletes) == after
