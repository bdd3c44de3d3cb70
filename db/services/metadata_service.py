"""Documents' metadata: conditions on it, a summary of it, changes to many documents at once."""

import re
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from db.models import Document, now_ms
from db.services import document_service
from db.services.document_service import DocumentBrief

DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}")
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


def documents_matching(
    tenant_id: str, dataset_ids: Sequence[str], condition: Mapping[str, Any], document_ids: Sequence[str] | None = None
) -> list[str]:
    """Ids of the datasets' documents (all, or those among `document_ids`) whose metadata fulfils the condition."""
    return [brief.id for brief in document_service.briefs(tenant_id, dataset_ids, document_ids) if fulfils(brief.meta_fields, condition)]


def select(
    tenant_id: str, dataset_id: str, *, condition: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None, empty: bool
) -> list[str]:
    """Ids of the dataset's documents without metadata (with `empty`), or those that fulfil the condition and have what is wanted."""
    briefs = document_service.briefs(tenant_id, [dataset_id])
    if empty:
        return [brief.id for brief in briefs if not brief.meta_fields]
    if condition:
        briefs = [brief for brief in briefs if fulfils(brief.meta_fields, condition)]
    return [brief.id for brief in briefs if not wanted or has_values(brief.meta_fields, wanted)]


def fulfils(meta: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """Whether metadata fulfils `{"logic": "and" | "or", "conditions": [{name, comparison_operator, value}]}`; none: it does not."""
    conditions = condition.get("conditions") or []
    if not isinstance(conditions, list) or not conditions:
        return False
    combine = any if str(condition.get("logic", "and")).lower() == "or" else all
    return combine(_holds(meta, item) for item in conditions)


def has_values(meta: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether every key has one of the values wanted for it; `empty_metadata: true` wants documents without any."""
    for key, values in wanted.items():
        if key == "empty_metadata":
            if bool(values) and meta:
                return False
            continue
        have = {str(item).casefold() for item in _listed(meta.get(key, []))}
        if not any(str(value).casefold() in have for value in _listed(values)):
            return False
    return True


def summary(tenant_id: str, dataset_ids: Sequence[str], document_ids: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """What `summarise` says of the datasets' documents, all or those among `document_ids`."""
    return summarise([brief.meta_fields for brief in document_service.briefs(tenant_id, dataset_ids, document_ids)])


def summarise(metas: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key -> `{"type": ..., "values": [[value, count], ...]}`, values by falling count, the type that of the majority."""
    counts: dict[str, Counter[str]] = {}
    types: dict[str, Counter[str]] = {}
    for meta in metas:
        for key, value in meta.items():
            types.setdefault(key, Counter())[type_of(value)] += 1
            counts.setdefault(key, Counter()).update(str(item) for item in _listed(value))
    return {
        key: {"type": types[key].most_common(1)[0][0], "values": [list(pair) for pair in sorted(counts[key].items(), key=_by_count)]}
        for key in counts
    }


def type_of(value: Any) -> str:
    """`list`, `number`, `time` or `string`."""
    if isinstance(value, list):
        return "list"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return "time" if isinstance(value, str) and TIME.fullmatch(value) else "string"


def change(
    tenant_id: str, dataset_id: str, document_ids: Sequence[str] | None, condition: Mapping[str, Any] | None,
    updates: Sequence[Mapping[str, Any]], deletes: Sequence[Mapping[str, Any]],
) -> tuple[int, int]:  # fmt: skip
    """Apply the changes to the documents selected: how many were changed, how many were selected."""
    selected = document_service.briefs(tenant_id, [dataset_id], document_ids, hold=True)
    if condition:
        selected = [brief for brief in selected if fulfils(brief.meta_fields, condition)]
    return sum(_change(brief, updates, deletes) for brief in selected), len(selected)


def changed(meta: Mapping[str, Any], updates: Sequence[Mapping[str, Any]], deletes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metadata after the updates and then the deletes."""
    result = dict(meta)
    for item in updates:
        _update_key(result, item["key"], item)
    for item in deletes:
        _delete_key(result, item["key"], item)
    return result


def _change(brief: DocumentBrief, updates: Sequence[Mapping[str, Any]], deletes: Sequence[Mapping[str, Any]]) -> bool:
    result = changed(brief.meta_fields, updates, deletes)
    if result == brief.meta_fields:
        return False
    Document.update(meta_fields=result, update_time=now_ms()).where(Document.id == brief.id).execute()
    return True


def _update_key(meta: dict[str, Any], key: str, item: Mapping[str, Any]) -> None:
    value, with_match = item["value"], item.get("match") not in (None, "")
    if key not in meta:
        if not with_match:
            meta[key] = value
        return
    have = meta[key]
    if not isinstance(have, list):
        if not with_match or str(have) == str(item["match"]):
            meta[key] = value
    elif with_match:
        replaced = [part for old in have for part in (_listed(value) if str(old) == str(item["match"]) else [old])]
        meta[key] = _without_repeats(replaced)
    else:
        meta[key] = _without_repeats([*have, *_listed(value)])


def _delete_key(meta: dict[str, Any], key: str, item: Mapping[str, Any]) -> None:
    if key not in meta:
        return
    have, value = meta[key], item.get("value")
    if value in (None, ""):
        del meta[key]
    elif isinstance(have, list):
        unwanted = {str(part) for part in _listed(value)}
        meta[key] = [old for old in have if str(old) not in unwanted]
        if not meta[key]:
            del meta[key]
    elif str(have) == str(value):
        del meta[key]


def is_operator(value: Any) -> bool:
    """Whether a condition may compare so."""
    return _operator(value) in OPERATORS


def _holds(meta: Mapping[str, Any], item: Any) -> bool:
    """Whether one of the keys named has a value that compares so."""
    if not isinstance(item, Mapping) or not {"name", "comparison_operator", "value"} <= item.keys():
        return False
    operator = _operator(item["comparison_operator"])
    keys = [key for key in _listed(item["name"]) if isinstance(key, str) and key in meta]
    return operator in OPERATORS and any(_compares(part, operator, item["value"]) for key in keys for part in _listed(meta[key]))


def _operator(value: Any) -> str:
    name = str(value).strip().lower()
    return OTHER_NAMES.get(name, name)


def _compares(have: Any, name: str, want: Any) -> bool:
    if name in DATED and isinstance(want, str) and DATE.fullmatch(want.strip()):
        if not (isinstance(have, str) and DATE.fullmatch(have.strip())):
            return False
        return OPERATORS[name](have.strip(), want.strip())
    have, want = _literal(have), _literal(want)
    try:
        return OPERATORS[name](have, want)
    except TypeError:
        return OPERATORS[name](str(have), str(want))


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
    return [_literal(part) for part in value.split(",")] if isinstance(value, str) else _listed(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _without_repeats(values: Sequence[Any]) -> list[Any]:
    seen: set[str] = set()
    return [value for value in values if not (str(value) in seen or seen.add(str(value)))]


def _by_count(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]
