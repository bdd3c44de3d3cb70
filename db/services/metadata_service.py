"""Documents' metadata: conditions on it, a summary of it, changes to many documents at once."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from db.dialect import among
from db.models import Dataset, Document, now_ms
from db.services import document_service, metadata_rows
from db.services.metadata_conditions import Clause, clauses_of, fulfils, listed, wanted_clause

TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}")
FEW = 1_000  # documents whose metadata is read sooner than the index of all


def documents_matching(
    tenant_id: str, dataset_ids: Sequence[str], condition: Mapping[str, Any], document_ids: Sequence[str] | None = None
) -> list[str]:
    """Ids of the datasets' documents (all, or those among `document_ids`) whose metadata fulfils the condition, in no order."""
    if document_ids is not None and len(document_ids) <= FEW:
        briefs = document_service.briefs(tenant_id, dataset_ids, document_ids)
        return [brief.id for brief in briefs if fulfils(brief.meta_fields, condition)]
    found = {document_id for dataset_id in _owned(tenant_id, dataset_ids) for document_id in _matching(dataset_id, condition)}
    return list(found if document_ids is None else found.intersection(document_ids))


def select(
    tenant_id: str, dataset_id: str, *, condition: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None, empty: bool
) -> list[str]:
    """Ids of the dataset's documents without metadata (with `empty`), or those that fulfil the condition and have what is wanted.

    Wanted is one of the values of each key; `empty_metadata: true` wants documents without any.
    """
    if not _owned(tenant_id, [dataset_id]):
        return []
    if empty:
        condition, wanted = None, {"empty_metadata": True}
    documents = Document.select(Document.id).where(Document.dataset_id == dataset_id)
    demands = [_matching(dataset_id, condition)] if condition else []
    for key, values in (wanted or {}).items():
        if key != "empty_metadata":
            demands.append(_having(dataset_id, wanted_clause(key, values)))
        elif values:
            demands.append({document_id for (document_id,) in documents.where(metadata_rows.has_none()).tuples()})
    return list(set.intersection(*demands)) if demands else [document_id for (document_id,) in documents.tuples()]


def summary(tenant_id: str, dataset_ids: Sequence[str], document_ids: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """What `summarise` says of the datasets' documents, all or those among `document_ids`."""
    if document_ids is not None:
        briefs = document_service.briefs(tenant_id, dataset_ids, document_ids)
        return summarise((key, value, 1) for brief in briefs for key, value in brief.meta_fields.items())
    datasets = _owned(tenant_id, dataset_ids)
    return summarise(value[:3] for dataset_id in datasets for value in metadata_rows.values(dataset_id))


def examples(
    tenant_id: str, dataset_ids: Sequence[str], keys: Sequence[str] | None, most_keys: int, most_values: int
) -> dict[str, list[str]]:  # fmt: skip
    """Key -> the values that most of the datasets' documents have, the most frequent first; of these keys, or of whichever there are.

    Elements of lists count one by one, in those lists that are the most frequent.
    """
    found = summarise(metadata_rows.most_frequent(_owned(tenant_id, dataset_ids), keys, most_keys, most_values))
    return {key: [value for value, _ in entry["values"][:most_values]] for key, entry in found.items()}


def summarise(values: Iterable[tuple[str, Any, int]]) -> dict[str, dict[str, Any]]:
    """Of keys, values and how many documents have them: key -> `{"type": ..., "values": [[value, count], ...]}`.

    Elements of lists count one by one, values come by falling count, the type is that of most documents.
    """
    counts: dict[str, dict[str, int]] = {}
    types: dict[str, Counter[str]] = {}
    for key, value, documents in values:
        types.setdefault(key, Counter())[type_of(value)] += documents
        of_key = counts.setdefault(key, {})
        for item in map(str, listed(value)):
            of_key[item] = of_key.get(item, 0) + documents
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
    after = [replace(brief, meta_fields=changed(brief.meta_fields, updates, deletes)) for brief in selected]
    different = [new for old, new in zip(selected, after, strict=True) if new != old]
    for brief in different:
        Document.update(meta_fields=brief.meta_fields, update_time=now_ms()).where(Document.id == brief.id).execute()
    metadata_rows.put((brief.id, brief.dataset_id, brief.meta_fields) for brief in different)
    return len(different), len(selected)


def changed(meta: Mapping[str, Any], updates: Sequence[Mapping[str, Any]], deletes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metadata after the updates and then the deletes."""
    result = dict(meta)
    for item in updates:
        _update_key(result, item["key"], item)
    for item in deletes:
        _delete_key(result, item["key"], item)
    return result


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
        replaced = [part for old in have for part in (listed(value) if str(old) == str(item["match"]) else [old])]
        meta[key] = _without_repeats(replaced)
    else:
        meta[key] = _without_repeats([*have, *listed(value)])


def _delete_key(meta: dict[str, Any], key: str, item: Mapping[str, Any]) -> None:
    if key not in meta:
        return
    have, value = meta[key], item.get("value")
    if value in (None, ""):
        del meta[key]
    elif isinstance(have, list):
        unwanted = {str(part) for part in listed(value)}
        meta[key] = [old for old in have if str(old) not in unwanted]
        if not meta[key]:
            del meta[key]
    elif str(have) == str(value):
        del meta[key]


def _owned(tenant_id: str, dataset_ids: Sequence[str]) -> list[str]:
    """Those of the datasets that are the tenant's."""
    rows = Dataset.select(Dataset.id).where(Dataset.tenant_id == tenant_id, among(Dataset.id, dataset_ids))
    return [dataset_id for (dataset_id,) in rows.tuples()]


def _matching(dataset_id: str, condition: Mapping[str, Any]) -> set[str]:
    one_is_enough, clauses = clauses_of(condition)
    found = [_having(dataset_id, clause) for clause in clauses] or [set()]
    return set.union(*found) if one_is_enough else set.intersection(*found)


def _having(dataset_id: str, clause: Clause) -> set[str]:
    return {document_id for key in clause.keys for document_id in metadata_rows.documents_where(dataset_id, key, clause.holds)}


def _without_repeats(values: Sequence[Any]) -> list[Any]:
    seen: set[str] = set()
    return [value for value in values if not (str(value) in seen or seen.add(str(value)))]


def _by_count(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]
