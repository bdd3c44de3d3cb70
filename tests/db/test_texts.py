"""Texts are kept, compared and sorted alike in every database."""

import pytest

from db.models import Dataset, Message, Tenant, name_key
from db.services import conversation_service, dataset_service, dialog_service, search_service
from db.services.conversation_service import MessageRecord
from db.services.dataset_service import DatasetQuery
from db.session import Session
from rag.errors import Conflict, InvalidArgument

TENANT, CHAT = "1" * 32, "2" * 32
STRANGE = "👩‍👩‍👧 𝔊𝔯𝔢𝔢𝔱𝔦𝔫𝔤𝔰 日本語 \u202ertl ' \" \\ % _ \u0301 \U0010ffff"


def make(session: Session, name: str) -> dataset_service.DatasetRecord:
    return session.write_now(dataset_service.create, TENANT, {"name": name, "embedding_model": "m@P"})


def test_any_character_comes_back_as_it_was(session: Session) -> None:
    made = session.write_now(
        dataset_service.create,
        TENANT,
        {"name": STRANGE, "description": STRANGE * 5000, "embedding_model": "m@P", "parser_config": {STRANGE: [STRANGE, "\0", 1.5, None]}},
    )
    assert session.read_now(dataset_service.get, TENANT, made.id) == made
    assert made.name == STRANGE
    assert made.parser_config == {STRANGE: [STRANGE, "\0", 1.5, None]}
    assert session.read_now(dataset_service.find_name, TENANT, STRANGE) == made


def test_nul_is_left_out_of_texts(session: Session) -> None:
    made = make(session, "n\0ul")
    assert made.name == "nul"
    assert session.read_now(dataset_service.find_name, TENANT, "nu\0l") == made
    conversation = session.write_now(conversation_service.create, TENANT, CHAT, name="s", user_id="u", prologue="H\0i")
    session.write_now(conversation_service.append_turn, TENANT, conversation.id, [MessageRecord("user", "a\0b")])
    assert session.read_now(lambda: [row.content for row in Message.select().order_by(Message.position)]) == ["Hi", "ab"]
    assert session.read_now(dataset_service.search, TENANT, DatasetQuery(keywords="u\0l"))[0] == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [("Straße", "STRASSE"), ("ÉTÉ", "été"), ("e\u0301", "É"), ("Привет", "ПРИВЕТ"), ("ΣΊΣΥΦΟΣ", "σίσυφος"), ("𐐀", "𐐨")],
)
def test_names_that_differ_in_case_only_are_one(session: Session, first: str, second: str) -> None:
    assert make(session, first).name == first
    assert make(session, second).name == f"{second}(1)"
    session.write_now(dialog_service.create, TENANT, {"name": first})
    with pytest.raises(Conflict):
        session.write_now(dialog_service.create, TENANT, {"name": second})
    assert session.write_now(search_service.create, TENANT, {"name": first}).name == first
    assert session.write_now(search_service.create, TENANT, {"name": second}).name == f"{second}(1)"


@pytest.mark.parametrize(("first", "second"), [("e", "é"), ("a", "a "), ("ss", "s"), ("ı", "i"), ("1", "１"), ("あ", "ア"), ("👍", "👎")])
def test_names_that_differ_otherwise_are_two(session: Session, first: str, second: str) -> None:
    assert make(session, first).name == first
    assert make(session, second).name == second


def test_texts_are_sorted_by_code_points(session: Session) -> None:
    names = ["b", "B", "a", "_", "Z", "é", "e", "あ", "𝔊", "a b", "a-b", "ab"]
    session.write_now(lambda: [Tenant.create(name=name) for name in names])
    assert session.read_now(lambda: [row.name for row in Tenant.select().order_by(Tenant.name)]) == sorted(names)


@pytest.mark.parametrize("part", ["50%", "a_b", "\\", "'", "Ä", "日"])
def test_a_part_of_a_name_is_taken_letter_by_letter(session: Session, part: str) -> None:
    for name in ("50% off", "a_b", "axb", "back\\slash", "it's", "ärger", "日本", "500"):
        make(session, name)
    found = {record.name for record in session.read_now(dataset_service.search, TENANT, DatasetQuery(keywords=part))[1]}
    assert found == {name for name in ("50% off", "a_b", "back\\slash", "it's", "ärger", "日本") if name_key(part) in name_key(name)}


def test_the_longest_names_that_callers_may_give_find_room(session: Session) -> None:
    for name in ("ΐ" * 64, "x" * 128, "ﬃ" * 42, "\U0001d15e" * 32):
        assert make(session, name).name == name


def test_more_ids_than_a_statement_takes_are_looked_up(session: Session) -> None:
    made = make(session, "one")
    ids = [f"{number:032x}" for number in range(70_000)]
    assert set(session.read_now(dataset_service.get_many, TENANT, [*ids, made.id])) == {made.id}
    assert session.write_now(dataset_service.delete, TENANT, [*ids, made.id])[0] == 1
    assert session.read_now(lambda: Dataset.select().count()) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "c", "language": "x" * 33}, "language exceeds 32 characters"),
        ({"name": "c", "llm_id": "x" * 256}, "llm_id exceeds 255 characters"),
        ({"name": "c", "top_n": 1 << 31}, "top_n is out of range"),
    ],
)
def test_what_a_column_cannot_hold_is_the_callers_mistake(session: Session, values: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        session.write_now(dialog_service.create, TENANT, values)
    made = session.write_now(dialog_service.create, TENANT, {"name": "other"})
    with pytest.raises(InvalidArgument, match=message):
        session.write_now(dialog_service.update, TENANT, made.id, values)


def test_a_page_far_behind_the_end_is_empty(session: Session) -> None:
    make(session, "one")
    assert session.read_now(dataset_service.search, TENANT, DatasetQuery(page=10**30, page_size=100)) == (1, [])
