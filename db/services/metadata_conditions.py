"""What a condition on documents' metadata means: which values fulfil it. No database here."""

import re
from ast import literal_eval
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
LITERAL = re.compile(r"[-+0-9.\[({'\"]")

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "is": lambda have, want: have == want,
    "not is": lambda have, want: have != want,
    ">": lambda have, want: have > want,
    "<": lambda have, want: have < want,
    ">=": lambda have, want: have >= want,
    "<=": lambda have, want: have <= want,
    "contains": lambda have, want: str(want) in str(have),
    "not contains": lambda have, want: str(want) not in str(have),
    "in": lambda have, want: have in _choices(want),
    "not in": lambda have, want: have not in _choices(want),
    "start with": lambda have, want: str(have).startswith(str(want)),
    "end with": lambda have, want: str(have).endswith(str(want)),
    "empty": lambda have, want: have in ("", "none"),
    "not empty": lambda have, want: have not in ("", "none"),
}
OTHER_NAMES = {
    "=": "is",
    "==": "is",
    "!=": "not is",
    "≠": "not is",
    "≥": ">=",
    "≤": "<=",
    "not_contains": "not contains",
    "not_in": "not in",
}
DATED = ("is", "not is", ">", "<", ">=", "<=")


@dataclass(frozen=True, slots=True)
class Clause:
    """Holds for metadata in which one of the keys has a value that `holds`: what other keys say does not matter."""

    keys: Sequence[str]
    holds: Callable[[Any], bool]


def clauses_of(condition: Mapping[str, Any]) -> tuple[bool, list[Clause]]:
    """Of `{"logic": "and" | "or", "conditions": [{name, comparison_operator, value}]}`: whether one is enough, and the clauses."""
    conditions = condition.get("conditions")
    one_is_enough = str(condition.get("logic", "and")).lower() == "or"
    return one_is_enough, [_clause(item) for item in conditions] if isinstance(conditions, list) else []


def fulfils(meta: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """Whether metadata fulfils the condition; one without clauses it does not."""
    one_is_enough, clauses = clauses_of(condition)
    combine = any if one_is_enough else all
    return bool(clauses) and combine(any(key in meta and clause.holds(meta[key]) for key in clause.keys) for clause in clauses)


def wanted_clause(key: str, values: Any) -> Clause:
    """Holds where the key has one of the values, whatever their case."""
    wanted = {str(value).casefold() for value in listed(values)}
    return Clause((key,), lambda have: any(str(item).casefold() in wanted for item in listed(have)))


def is_operator(value: Any) -> bool:
    """Whether a condition may compare so."""
    return _operator(value) in OPERATORS


def listed(value: Any) -> list[Any]:
    """A list's elements, or the value as the only one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _clause(item: Any) -> Clause:
    """That of a condition's item; what is none holds nowhere."""
    if not isinstance(item, Mapping) or not {"name", "comparison_operator", "value"} <= item.keys():
        return Clause((), bool)
    operator = _operator(item["comparison_operator"])
    if operator not in OPERATORS:
        return Clause((), bool)
    compares = _comparison(operator, item["value"])
    keys = [key for key in listed(item["name"]) if isinstance(key, str)]
    return Clause(keys, lambda have: any(compares(part) for part in listed(have)))


def _operator(value: Any) -> str:
    name = str(value).strip().lower()
    return OTHER_NAMES.get(name, name)


def _comparison(name: str, want: Any) -> Callable[[Any], bool]:
    operator = OPERATORS[name]
    if name in DATED and isinstance(want, str) and DATE.fullmatch(want.strip()):
        date = want.strip()
        return lambda have: isinstance(have, str) and DATE.fullmatch(have.strip()) is not None and operator(have.strip(), date)
    wanted = _literal(want)

    def compares(value: Any) -> bool:
        have = _literal(value)
        try:
            return operator(have, wanted)
        except TypeError:
            return operator(str(have), str(wanted))

    return compares


def _literal(value: Any) -> Any:
    """The value with its text read as a literal where it is one, and without case where it is not."""
    if isinstance(value, list):
        return [_literal(part) for part in value]
    if not isinstance(value, str):
        return str(value).casefold() if value is None or isinstance(value, bool) else value
    text = value.strip()
    if len(text) <= 4096 and LITERAL.match(text):
        try:
            read = literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return text.casefold()
        return read.casefold() if isinstance(read, str) else read
    return text.casefold()


def _choices(value: Any) -> list[Any]:
    return [_literal(part) for part in value.split(",")] if isinstance(value, str) else listed(value)
