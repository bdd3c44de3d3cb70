"""db/services/metadata_rows.py: the index of documents' metadata says what the documents say, whoever changed them."""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from db.address import Address
from db.models import Dataset, Document, DocumentMetadata, SchemaVersion, name_key
from db.services import dataset_service, document_service, metadata_rows, metadata_service
from db.services.document_service import DocumentQuery
from db.services.metadata_conditions import OPERATORS, fulfils, listed
from db.session import Session
from rag.threads import Lane

TENANT, OTHER = "1" * 32, "2" * 32
LONG = "long " * 100
VALUES = [
    *(0, 1, 2, 10, -3, 1.0, 2.5, 1e300, True, False, "1", "1.0", "10", "", "none", "None", "True", "true", " red ", "Red", "red", "réd"),
    *("2024-05-01", "2024-05-02", " 2024-05-01 ", "2024-05-01T10:11:12", "a, b", "a", "(1, 2)", "[1]", "'red'", "b\0c", "\\", "%_"),
    *("x" * 126, "x" * 127, "ß" * 64, LONG),
    *([], [1, 2], ["red", 1], ["Red"], [LONG, "a"], ["2024-05-01", "x"], None, {"a": 1}),
]  # fmt: skip
KEYS = ["a", "A", "b", "ß", "a b", "k" * 300, '"', "\0", ""]
Many = tuple[Session, list[str], dict[str, dict[str, Any]], random.Random]
WANTED = [*VALUES, "red,1", "1,2", ["red", "1"], [1, "x"], "re", "2024", 5]


def add(dataset_id: str, *metas: Mapping[str, Any], tenant_id: str = TENANT) -> list[str]:
    """New documents with this metadata: their ids."""
    ids = []
    for meta in metas:
        name = f"{len(ids)} {random.random()}"
        row = Document.create(
            tenant_id=tenant_id, dataset_id=dataset_id, created_by=tenant_id, name=name, name_key=name_key(name), location="", type="doc",
            suffix=random.choice(["txt", "pdf"]),
        )  # fmt: skip
        document_service.update(row.id, {"meta_fields": meta})
        ids.append(row.id)
    return ids


def make(session: Session, *metas: Mapping[str, Any], tenant_id: str = TENANT) -> tuple[str, list[str]]:
    """A dataset with documents."""

    def rows() -> tuple[str, list[str]]:
        name = f"{random.random()}"
        dataset = Dataset.create(tenant_id=tenant_id, created_by=tenant_id, name=name, name_key=name, embedding_model="m")
        return dataset.id, add(dataset.id, *metas, tenant_id=tenant_id)

    return session.write_now(rows)


def agree(session: Session) -> bool:
    """Whether the table has the rows that the documents' metadata makes, each once."""

    def compare() -> bool:
        documents = list(Document.select(Document.id, Document.dataset_id, Document.meta_fields).tuples())
        before = {row.id for row in DocumentMetadata.select()}
        metadata_rows.put(documents)  # which would mend what is wrong
        unchanged = before == {row.id for row in DocumentMetadata.select()}
        return unchanged and len(before) == sum(len(meta) for _, _, meta in documents)

    return session.write_now(compare)


def condition(name: Any, operator: str, value: Any) -> dict[str, Any]:
    return {"conditions": [{"name": name, "comparison_operator": operator, "value": value}]}


def some_meta(dice: random.Random) -> dict[str, Any]:
    return {key: dice.choice(VALUES) for key in dice.sample(KEYS, dice.randint(0, 4))}


def some_condition(dice: random.Random) -> dict[str, Any]:
    items: list[Any] = [
        {
            "name": dice.choice([*KEYS, KEYS[:2], ["none", "b"]]),
            "comparison_operator": dice.choice([*OPERATORS, "≠", "NOT IN", "resembles"]),
            "value": dice.choice(WANTED),
        }
        for _ in range(dice.randint(0, 3))
    ]
    return {"logic": dice.choice(["and", "or"]), "conditions": dice.choice([items, items, items, [*items, {"name": "a"}]])}


@pytest.fixture
def many(session: Session) -> Many:
    """Two datasets of documents with metadata of every kind, and what each document has."""
    dice = random.Random(7)
    metas = [[some_meta(dice) for _ in range(60)] for _ in range(2)]
    made = [make(session, *some) for some in metas]
    make(session, *metas[0], tenant_id=OTHER)
    rows = session.read_now(lambda: list(Document.select().where(Document.tenant_id == TENANT)))
    return session, [dataset_id for dataset_id, _ in made], {row.id: row.meta_fields for row in rows}, dice


def test_the_index_finds_the_documents_that_fulfil_a_condition(many: Many) -> None:
    session, datasets, metas, dice = many
    found = 0
    for _ in range(400):
        wanted = some_condition(dice)
        expected = {document_id for document_id, meta in metas.items() if fulfils(meta, wanted)}
        got = session.read_now(metadata_service.documents_matching, TENANT, datasets, wanted)
        assert sorted(got) == sorted(expected), wanted
        some = dice.sample(sorted(metas), 5)
        assert set(session.read_now(metadata_service.documents_matching, TENANT, datasets, wanted, some)) == expected.intersection(some)
        found += bool(expected)
    assert found > 100


def test_what_is_wanted_is_found_whatever_its_case(many: Many) -> None:
    session, (dataset, _), _, dice = many
    metas = {row.id: row.meta_fields for row in session.read_now(lambda: list(Document.select().where(Document.dataset_id == dataset)))}

    def has(meta: Mapping[str, Any], key: str, values: Any) -> bool:
        if key == "empty_metadata":
            return not (values and meta)
        return any(str(have).casefold() == str(value).casefold() for have in listed(meta.get(key, [])) for value in listed(values))

    for _ in range(200):
        keys = dice.sample([*KEYS, "empty_metadata"], dice.randint(1, 2))
        wanted = {key: dice.choice(WANTED) for key in keys}
        expected = {document_id for document_id, meta in metas.items() if all(has(meta, key, values) for key, values in wanted.items())}
        got = session.read_now(metadata_service.select, TENANT, dataset, condition=None, wanted=wanted, empty=False)
        assert sorted(got) == sorted(expected), wanted
    without = {document_id for document_id, meta in metas.items() if not meta}
    assert without
    assert set(session.read_now(metadata_service.select, TENANT, dataset, condition=None, wanted=None, empty=True)) == without
    both = session.read_now(
        metadata_service.select, TENANT, dataset, condition=condition("a", "not is", "x"), wanted={"A": "red"}, empty=False
    )
    assert set(both) == {row for row, meta in metas.items() if "a" in meta and has(meta, "A", "red")}
    assert session.read_now(metadata_service.select, OTHER, dataset, condition=None, wanted={"empty_metadata": False}, empty=False) == []


def test_a_summary_says_what_reading_all_documents_would_say(many: Many) -> None:
    session, datasets, metas, _ = many

    def shown(summary: Mapping[str, Any]) -> dict[str, Any]:
        return {key: entry["values"] for key, entry in summary.items()}  # of two types as frequent either may be named

    whole = session.read_now(metadata_service.summary, TENANT, datasets)
    assert shown(whole) == shown(metadata_service.summarise((key, value, 1) for meta in metas.values() for key, value in meta.items()))
    assert shown(session.read_now(metadata_service.summary, TENANT, datasets, list(metas))) == shown(whole)
    assert session.read_now(metadata_service.summary, OTHER, datasets) == {}


def test_examples_are_the_values_of_the_summary(many: Many) -> None:
    session, datasets, _, _ = many

    def examples(keys: list[str] | None, *limits: int, tenant_id: str = TENANT) -> dict[str, list[str]]:
        return session.read_now(metadata_service.examples, tenant_id, datasets, keys, *limits)

    summary = session.read_now(metadata_service.summary, TENANT, datasets)
    every = {key: [value for value, _ in entry["values"]] for key, entry in summary.items()}
    assert examples(None, 100, 1000) == every
    assert examples(["b", "k" * 300, "unknown"], 100, 1000) == {key: every[key] for key in ("b", "k" * 300)}
    assert examples([], 100, 1000) == examples(None, 100, 1000, tenant_id=OTHER) == {}


def test_examples_are_so_many_keys_and_the_most_frequent_values(session: Session) -> None:
    metas = [{"n": min(number, 7), "tags": ["all", number], f"key {number}": LONG + str(number)} for number in range(20)]
    made = [make(session, *some)[0] for some in (metas[:5], metas[5:])]
    examples = session.read_now(metadata_service.examples, TENANT, made, None, 3, 4)
    assert examples == {"key 0": [f"{LONG}0"], "key 1": [f"{LONG}1"], "key 10": [f"{LONG}10"]}
    examples = session.read_now(metadata_service.examples, TENANT, made, ["n", "tags", "key 1"], 2, 4)
    assert examples.keys() == {"n", "tags"}
    assert examples["n"] == ["7", "0", "1", "2"]
    assert examples["tags"][0] == "all"
    assert len(examples["tags"]) == 4


@pytest.mark.parametrize("suffixes", [(), ("txt",), ("none",)])
def test_facets_count_the_documents_that_match(many: Many, suffixes: tuple[str, ...]) -> None:
    session, (dataset, _), _, _ = many
    rows = session.read_now(lambda: list(Document.select().where(Document.dataset_id == dataset)))
    rows = [row for row in rows if not suffixes or row.suffix in suffixes]
    facets = session.read_now(document_service.facets, dataset, DocumentQuery(suffixes=suffixes))
    assert (facets.total, facets.without_metadata) == (len(rows), sum(not row.meta_fields for row in rows))
    assert facets.suffixes == {suffix: sum(row.suffix == suffix for row in rows) for suffix in {row.suffix for row in rows}}
    assert facets.runs == ({"UNSTART": len(rows)} if rows else {})
    of_all = [(key, repr(value)) for row in rows for key, value in row.meta_fields.items()]
    assert {(value.key, repr(value.value)): value.count for value in facets.values} == {pair: of_all.count(pair) for pair in of_all}


def test_every_change_of_metadata_changes_the_index_with_it(session: Session) -> None:
    dataset, (one, two, three) = make(session, {"a": 1, "b": LONG}, {"a": 1}, {"k" * 300: [1, 2]})
    assert agree(session)
    session.write_now(document_service.update, one, {"meta_fields": {"a": 1.0, "c": LONG}})
    session.write_now(document_service.update, two, {"name": "other.txt"})
    assert agree(session)
    changed = session.write_now(
        metadata_service.change, TENANT, dataset, None, condition("a", "is", 1), [{"key": "a", "value": 2}], [{"key": "c"}]
    )
    assert changed == (2, 2)
    assert agree(session)
    assert session.read_now(metadata_service.documents_matching, TENANT, [dataset], condition("a", "is", 1)) == []
    session.write_now(document_service.delete, TENANT, dataset, [one])
    assert agree(session)
    assert session.read_now(metadata_service.documents_matching, TENANT, [dataset], condition("a", "is", 2)) == [two]
    assert session.write_now(document_service.update, one, {"meta_fields": {"a": 5}}) is None
    session.write_now(dataset_service.delete, TENANT, [dataset])
    assert session.read_now(lambda: DocumentMetadata.select().count()) == 0
    assert three


async def test_changes_at_once_leave_the_index_right(session: Session) -> None:
    dice = random.Random(3)
    dataset, ids = make(session, *[{"a": 0} for _ in range(8)])

    async def one() -> None:
        kind = dice.randrange(10)
        if kind == 0:
            await session.write(document_service.delete, TENANT, dataset, [dice.choice(ids)])
        elif kind < 4:
            update = {"key": dice.choice(KEYS), "value": dice.choice(VALUES)}
            await session.write(metadata_service.change, TENANT, dataset, None, condition("a", "is", dice.choice([0, 1])), [update], [])
        else:
            await session.write(document_service.update, dice.choice(ids), {"meta_fields": {**some_meta(dice), "a": dice.choice([0, 1])}})

    async with asyncio.TaskGroup() as group:
        for _ in range(60):
            group.create_task(one())
    assert agree(session)
    assert session.read_now(lambda: DocumentMetadata.select().count()) > 0


def test_a_change_that_fails_leaves_the_index_as_it_was(session: Session) -> None:
    _, (one, _) = make(session, {"a": 1}, {"a": 2})

    def fail() -> None:
        document_service.update(one, {"meta_fields": {"a": 3}})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        session.write_now(fail)
    assert agree(session)


def test_a_database_without_the_index_gets_it(session: Session) -> None:
    """Also where a crash had left some of it."""
    dataset, (one, two, gone) = make(session, {"a": 1, "b": "x"}, {"a": 1}, {"a": 1})

    def as_it_was() -> None:
        SchemaVersion.delete().where(SchemaVersion.version == 5).execute()
        DocumentMetadata.delete().where(DocumentMetadata.document_id == one).execute()
        Document.delete().where(Document.id == gone).execute()

    session.write_now(as_it_was)
    session.create_tables()
    assert agree(session)
    assert set(session.read_now(metadata_service.documents_matching, TENANT, [dataset], condition("a", "is", 1))) == {one, two}
    session.close()


def test_a_condition_on_very_many_values_is_answered(tmp_path: Path) -> None:
    lane = Lane("db", 1, 1)
    session = Session(Address("sqlite", path=tmp_path / "many.sqlite3"), lane)
    session.create_tables()
    dataset, _ = make(session)
    metas = [{"n": number // 2} for number in range(9_000)]

    def fill() -> None:
        documents = [(f"{number:032x}", dataset, meta) for number, meta in enumerate(metas)]
        metadata_rows.put(documents)

    session.write_now(fill)
    found = session.read_now(metadata_service.documents_matching, TENANT, [dataset], condition("n", ">=", 100))
    assert sorted(found) == [f"{number:032x}" for number in range(200, 9_000)]
    session.close()
    lane.close()
