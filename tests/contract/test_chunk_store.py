"""What every chunk store must do, whatever it is made of."""

import threading
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from rag.errors import InvalidArgument, Unavailable
from rag.ports import ChunkStore
from rag.store.elastic import Cluster
from rag.store.elastic_index import Layout
from rag.store.elastic_store import ElasticStore
from rag.store.embedded import EmbeddedStore
from rag.store.memory import MemoryStore
from rag.types import Chunk, ChunkSelector, ChunkTerms, SearchRequest, StoredChunk, Term
from tests.services.elasticsearch import Node

TENANT, OTHER = "a" * 32, "b" * 32
SPACE = "model-1"


@pytest.fixture(params=["embedded", "memory", "elasticsearch"])
def store(request, tmp_path: Path):
    if request.param == "elasticsearch":
        made = elastic_store(request.getfixturevalue("elasticsearch_node"))
    else:
        made = EmbeddedStore(tmp_path / "store") if request.param == "embedded" else MemoryStore()
    yield made
    if request.param == "elasticsearch":
        remove_indexes(made)
    made.close()


def elastic_store(node: Node) -> ElasticStore:
    return ElasticStore(Cluster([node.url]), Layout(prefix=f"{uuid.uuid4().hex}-"))


def remove_indexes(store: ElasticStore) -> None:
    with suppress(Unavailable):  # a test has closed it
        for tenant_id in (TENANT, OTHER):
            store.drop_tenant(tenant_id)


def make(number: int, text: str = "", *, dataset: str = "d1", document: str = "doc1", **fields) -> Chunk:
    """A chunk; its words are its terms."""
    terms = fields.pop("terms", ChunkTerms(content=text))
    return Chunk(f"{number:016x}", dataset, document, f"{document}.txt", text, terms, **fields)


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def ask(words: str = "", vector: np.ndarray | None = None, *, datasets: tuple[str, ...] = ("d1", "d2"), **fields) -> SearchRequest:
    terms = tuple(Term(word) for word in words.split())
    return SearchRequest(fields.pop("tenant", TENANT), datasets, terms=terms, vector=vector, space=fields.pop("space", SPACE), **fields)


def found(store: ChunkStore, *args, **fields) -> set[int]:
    return set(store.search(ask(*args, **fields)).ids.tolist())


def scores(store: ChunkStore, request: SearchRequest) -> dict[int, tuple[float, float, int, int]]:
    hits = store.search(request)
    rows = zip(hits.text_scores.tolist(), hits.vector_scores.tolist(), hits.text_ranks.tolist(), hits.vector_ranks.tolist(), strict=True)
    return dict(zip(hits.ids.tolist(), rows, strict=True))


def documents(count: int = 1, **fields) -> ChunkSelector:
    return ChunkSelector(document_ids=tuple(f"doc{n + 1}" for n in range(count)), **fields)


# ---------------------------------------------------------------------------------------------------- put and get
def test_a_chunk_comes_back_as_it_was_put(store):
    chunk = make(
        0xFEDCBA9876543210, "an apple", version=3, position=7, headings=("One", "Two"), keywords=("k",), questions=("q?",), tags=("t",),
        positions=((1, 2, 3, 4, 5), (2, 0, 1, 2, 3)), kind="table", available=False, created_at=12.5,
        extra={"image": "x", "n": [1, {"a": None}]},
        terms=ChunkTerms("title", "an apple", "k", "q"),
    )  # fmt: skip
    store.put(TENANT, [chunk], None, SPACE)
    assert store.get(TENANT, [chunk.id]) == [chunk]


def test_get_keeps_the_order_asked_for_and_says_none(store):
    store.put(TENANT, [make(1), make(2)], None, SPACE)
    got = store.get(TENANT, [f"{n:016x}" for n in (2, 9, 1, 2)])
    assert [chunk and int(chunk.id, 16) for chunk in got] == [2, None, 1, 2]


def test_put_replaces_by_id(store):
    store.put(TENANT, [make(1, "old words")], unit(1, 0)[None], SPACE)
    store.put(TENANT, [make(1, "new words", dataset="d2", document="doc2")], unit(0, 1)[None], SPACE)
    assert store.get(TENANT, [f"{1:016x}"])[0].content == "new words"
    assert found(store, "old") == set()
    assert found(store, "new", datasets=("d2",)) == {1}
    assert found(store, "", unit(0, 1), datasets=("d1",)) == set()
    assert scores(store, ask("", unit(0, 1)))[1][1] == pytest.approx(1.0, abs=1e-3)
    assert store.count(TENANT, ChunkSelector(dataset_ids=("d1", "d2"))) == 1


def test_the_last_of_equal_ids_in_one_put_wins(store):
    store.put(TENANT, [make(1, "first"), make(1, "second")], np.stack([unit(1, 0), unit(0, 1)]), SPACE)
    assert found(store, "first") == set()
    assert found(store, "second") == {1}
    assert store.vectors(TENANT, [f"{1:016x}"], SPACE)[0] == pytest.approx([0, 1], abs=1e-3)


def test_no_vectors_keeps_the_stored_ones(store):
    store.put(TENANT, [make(1, "a"), make(2, "b")], np.stack([unit(1, 0), unit(0, 1)]), SPACE)
    store.put(TENANT, [make(1, "c", dataset="d2"), make(3, "d")], None, "whatever")
    assert store.vectors(TENANT, [f"{1:016x}"], SPACE)[0] == pytest.approx([1, 0], abs=1e-3)
    assert found(store, "", unit(1, 0), datasets=("d2",)) == {1}
    assert np.isnan(store.vectors(TENANT, [f"{3:016x}"], SPACE)).all()


# ---------------------------------------------------------------------------------------------------- replace and take
def test_a_chunk_is_replaced_only_while_it_is_what_it_was(store):
    before, other = make(1, "old", extra={"n": [1]}, keywords=("k",), created_at=3.25), make(2, "other")
    store.put(TENANT, [before, other], np.stack([unit(1, 0), unit(1, 0)]), SPACE)
    first, second = make(1, "first"), make(1, "second")
    assert store.replace(TENANT, [before, make(2, "stale")], [first, make(2, "late")], np.stack([unit(0, 1)] * 2), SPACE) == [True, False]
    assert store.replace(TENANT, [before], [second], unit(0, 1)[None], SPACE) == [False]
    assert store.get(TENANT, [before.id, other.id]) == [first, other]
    assert found(store, "first") == {1}
    assert found(store, "old second late") == set()
    assert store.vectors(TENANT, [before.id, other.id], SPACE)[:, 0] == pytest.approx([0, 1], abs=1e-3)


def test_a_switched_chunk_is_not_what_it_was(store):
    store.put(TENANT, [make(1, "word")], None, SPACE)
    store.set_available(TENANT, documents(), False)
    assert store.replace(TENANT, [make(1, "word")], [make(1, "thing")], None, SPACE) == [False]


def test_a_deleted_chunk_is_never_replaced(store):
    store.put(TENANT, [make(1, "word"), make(2, "word")], np.ones((2, 2), np.float32), SPACE)
    store.delete(TENANT, ChunkSelector(chunk_ids=(f"{1:016x}",)))
    assert store.replace(TENANT, [make(1, "word")], [make(1, "thing")], unit(1, 1)[None], SPACE) == [False]
    assert store.get(TENANT, [f"{1:016x}"]) == [None]
    assert found(store, "thing") == set()
    assert store.replace(OTHER, [make(2, "word")], [make(2, "thing")], None, SPACE) == [False]


def test_replacing_without_vectors_keeps_the_stored_ones(store):
    store.put(TENANT, [make(1, "word")], unit(1, 0)[None], SPACE)
    assert store.replace(TENANT, [make(1, "word")], [make(1, "thing")], None, "") == [True]
    assert found(store, "thing") == found(store, "", unit(1, 0)) == {1}


def test_a_chunk_is_not_replaced_by_another(store):
    store.put(TENANT, [make(1, "word")], None, SPACE)
    with pytest.raises(InvalidArgument):
        store.replace(TENANT, [make(1, "word")], [make(2, "word")], None, SPACE)


def test_of_replacements_at_the_same_time_one_wins(store):
    store.put(TENANT, [make(1, "word")], None, SPACE)
    start, outcomes = threading.Barrier(4), []

    def change(number: int) -> None:
        start.wait()
        outcomes.append(store.replace(TENANT, [make(1, "word")], [make(1, f"word{number}")], None, SPACE, wait=False)[0])

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, False, False, True]


def test_taking_returns_what_it_deleted_and_only_once(store):
    chunks = [make(1, "word", keywords=("k",)), make(2, "word"), make(3, "word", document="doc2")]
    store.put(TENANT, chunks, np.ones((3, 2), np.float32), SPACE)
    assert store.take(TENANT, documents(chunk_ids=(f"{1:016x}", f"{9:016x}"))) == chunks[:1]
    assert store.take(TENANT, documents()) == chunks[1:2]
    assert store.take(TENANT, documents()) == []
    assert found(store, "word") == found(store, "", unit(1, 1)) == {3}


def test_putting_nothing_does_nothing(store):
    store.put(TENANT, [], np.empty((0, 2), np.float32), SPACE)
    assert store.count(TENANT, ChunkSelector(dataset_ids=("d1",))) == 0


def test_without_wait_everything_is_found_after_a_flush(store):
    for number in range(20):
        store.put(TENANT, [make(number, "word")], unit(1, number)[None], SPACE, wait=False)
    store.flush(TENANT)
    assert found(store, "word") == found(store, "", unit(1, 0)) == set(range(20))


def test_ten_thousand_chunks_in_one_put(store):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((10_000, 8)).astype(np.float32)
    store.put(TENANT, [make(n, f"all w{n}", document=f"doc{n // 100}") for n in range(10_000)], vectors, SPACE)
    assert found(store, "w7777") == {7777}
    hits = scores(store, ask("", vectors[1234] / np.linalg.norm(vectors[1234]), vector_k=5))
    assert hits[1234][3] == 0
    assert len(hits) == 5
    assert store.count(TENANT, ChunkSelector(dataset_ids=("d1",))) == 10_000
    assert len(store.get(TENANT, [f"{n:016x}" for n in range(10_000)])) == 10_000


# ---------------------------------------------------------------------------------------------------- bad values
@pytest.mark.parametrize("chunk_id", ["", "1", "X" * 16, "A" * 16, "0" * 17])
def test_an_id_that_is_not_sixteen_hex_digits_is_refused(store, chunk_id):
    with pytest.raises(InvalidArgument):
        store.put(TENANT, [Chunk(chunk_id, "d1", "doc1", "n", "", ChunkTerms())], None, SPACE)


def test_vectors_that_do_not_match_the_chunks_are_refused(store):
    with pytest.raises(InvalidArgument):
        store.put(TENANT, [make(1)], np.zeros((2, 4), np.float32), SPACE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused(store, value):
    with pytest.raises(InvalidArgument):
        store.put(TENANT, [make(1)], np.array([[1.0, value]], np.float32), SPACE)
    assert store.get(TENANT, [f"{1:016x}"]) == [None]


def test_another_dimension_in_the_same_space_is_refused(store):
    store.put(TENANT, [make(1)], unit(1, 0)[None], SPACE)
    with pytest.raises(InvalidArgument):
        store.put(TENANT, [make(2, dataset="d2")], unit(1, 0, 0)[None], SPACE)
    assert store.get(TENANT, [f"{2:016x}"]) == [None]


def test_text_that_is_not_unicode_is_refused_and_the_batch_with_it(store):
    with pytest.raises(InvalidArgument):
        store.put(TENANT, [make(1, "fine"), make(2, "\ud800")], None, SPACE)
    assert store.count(TENANT, documents()) == 0


def test_a_vector_of_zeros_has_no_direction_and_counts_as_none(store):
    store.put(TENANT, [make(1, "word"), make(2, "word")], np.array([[0, 0], [0, 2]], np.float32), SPACE)
    assert found(store, "", unit(1, 1)) == {2}
    assert np.isnan(scores(store, ask("word", unit(1, 1)))[1][1])


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_very_short_and_very_long_vectors_keep_their_direction(store, length):
    store.put(TENANT, [make(1)], np.array([[3 * length, 4 * length]], np.float32), SPACE)
    assert store.vectors(TENANT, [f"{1:016x}"], SPACE)[0] == pytest.approx([0.6, 0.8], abs=1e-3)


# ---------------------------------------------------------------------------------------------------- search
def test_search_in_nothing_finds_nothing(store):
    hits = store.search(ask("word", unit(1, 0)))
    assert len(hits.ids) == len(hits.document_of) == len(hits.text_scores) == len(hits.vector_scores) == 0
    assert hits.documents == []
    assert hits.degraded == ()


@pytest.mark.parametrize("fields", [{"datasets": ()}, {"datasets": ("unknown",)}, {"document_ids": ()}, {"document_ids": ("unknown",)}])
def test_an_empty_or_unknown_filter_finds_nothing(store, fields):
    store.put(TENANT, [make(1, "word")], unit(1, 0)[None], SPACE)
    assert found(store, "word", unit(1, 0), **fields) == set()


def test_each_arm_can_be_left_out(store):
    store.put(TENANT, [make(1, "word"), make(2, "other")], np.stack([unit(1, 0), unit(0, 1)]), SPACE)
    assert found(store, "word") == {1}
    assert found(store, "", unit(0, 1), vector_k=1) == {2}
    assert found(store) == set()
    assert found(store, "word", unit(0, 1), text_k=0, vector_k=0) == set()


def test_dataset_and_document_filters_hold_in_both_arms(store):
    chunks = [make(n, "word", dataset=f"d{n % 3}", document=f"doc{n % 5}") for n in range(60)]
    store.put(TENANT, chunks, np.stack([unit(1, n + 1) for n in range(60)]), SPACE)
    for words, vector in (("word", None), ("", unit(1, 1)), ("word", unit(1, 1))):
        assert found(store, words, vector, datasets=("d1", "d2")) == {n for n in range(60) if n % 3}
        expected = {n for n in range(60) if n % 3 == 1 and n % 5 in (0, 4)}
        assert found(store, words, vector, datasets=("d1",), document_ids=("doc0", "doc4", "gone")) == expected


def test_a_filter_of_thousands_of_documents(store):
    store.put(TENANT, [make(n, "word", document=f"x{n}") for n in range(3000)], np.ones((3000, 2), np.float32), SPACE)
    wanted = tuple(f"x{n}" for n in range(0, 3000, 2))
    assert found(store, "word", unit(1, 1), document_ids=wanted, text_k=3000, vector_k=3000) == set(range(0, 3000, 2))


def test_documents_of_candidates(store):
    store.put(TENANT, [make(n, "word", document=f"doc{n % 3}") for n in range(9)], None, SPACE)
    hits = store.search(ask("word"))
    assert {id_: hits.documents[place] for id_, place in zip(hits.ids.tolist(), hits.document_of.tolist(), strict=True)} == {
        n: f"doc{n % 3}" for n in range(9)
    }


def test_text_k_and_vector_k_bound_the_arms(store):
    vectors = np.stack([unit(1, n / 10) for n in range(50)])
    store.put(TENANT, [make(n, "word " * (n + 1)) for n in range(50)], vectors, SPACE)
    hits = scores(store, ask("word", unit(1, 0), text_k=3, vector_k=4))
    assert sorted(hit[2] for hit in hits.values() if hit[2] >= 0) == [0, 1, 2]
    assert {id_: hit[3] for id_, hit in hits.items() if hit[3] >= 0} == {0: 0, 1: 1, 2: 2, 3: 3}


def test_every_candidate_carries_both_scores(store):
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((300, 16)).astype(np.float32)
    words = [" ".join(f"w{(n * k) % 41}" for k in range(1, n % 30 + 2)) for n in range(300)]
    store.put(TENANT, [make(n, words[n], dataset=f"d{1 + n % 2}") for n in range(300)], vectors, SPACE)
    query = unit(*rng.standard_normal(16))
    hits = scores(store, ask("w3 w8", query, text_k=20, vector_k=20))
    every = scores(store, ask("w3 w8", query, text_k=300, vector_k=300))
    exact = vectors @ query / np.linalg.norm(vectors, axis=1)
    assert len(every) == 300
    assert 20 < len(hits) <= 40
    for id_, (text, vector, *_) in hits.items():
        assert text == pytest.approx(every[id_][0], rel=1e-5)
        assert (text > 0) == bool({"w3", "w8"} & set(words[id_].split()))
        assert vector == pytest.approx(exact[id_], abs=2e-3)
    assert {id_ for id_, hit in hits.items() if hit[3] >= 0} == set(np.argsort(-exact)[:20].tolist())


def test_text_scores_are_lucenes_bm25(store):
    words = ["a a b", "a c " + "x " * 60, "b", "c " * 17 + "y " * 100, "d d d a"]
    store.put(TENANT, [make(n, text) for n, text in enumerate(words)], None, SPACE)
    reference = MemoryStore()
    reference.put(TENANT, [make(n, text) for n, text in enumerate(words)], None, SPACE)
    expected = scores(reference, ask("a b c y"))
    assert len(expected) == 5
    assert {id_: hit[0] for id_, hit in scores(store, ask("a b c y")).items()} == pytest.approx(
        {id_: hit[0] for id_, hit in expected.items()}, rel=1e-5
    )


def test_a_field_that_few_chunks_have_scores_alike_in_all_stores(store):
    chunks = [
        make(n, "word", terms=ChunkTerms(content="word", keywords="key other" if n == 1 else "key" if n == 2 else "")) for n in range(40)
    ]
    reference = MemoryStore()
    for each in (store, reference):
        each.put(TENANT, chunks, None, SPACE)
    expected = {id_: hit[0] for id_, hit in scores(reference, ask("key word")).items()}
    assert {id_: hit[0] for id_, hit in scores(store, ask("key word")).items()} == pytest.approx(expected, rel=1e-5)
    assert expected[2] > expected[1] > 10 * expected[3]


def test_bm25_by_hand(store):
    store.put(TENANT, [make(1, "apple pear"), make(2, "apple apple"), make(3, "plum plum")], None, SPACE)
    idf = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    hits = scores(store, ask("apple"))
    assert hits[1][0] == pytest.approx(idf * 2.2 * 1 / (1 + 1.2), rel=1e-5)
    assert hits[2][0] == pytest.approx(idf * 2.2 * 2 / (2 + 1.2), rel=1e-5)


def test_field_boosts_and_term_weights_scale_the_sum(store):
    store.put(TENANT, [make(1, terms=ChunkTerms(title="word", content="word thing", keywords="word", questions="word"))], None, SPACE)

    def score(boosts, *terms):
        hits = store.search(SearchRequest(TENANT, ("d1",), terms=terms, field_boosts=boosts))
        return hits.text_scores.tolist()

    title, content = score({"title": 1.0}, Term("word")), score({"content": 1.0}, Term("word"))
    assert score({"title": 2.0, "content": 0.5}, Term("word")) == pytest.approx([2 * title[0] + content[0] / 2], rel=1e-5)
    assert score({"content": 1.0}, Term("word", 3.0)) == pytest.approx([3 * content[0]], rel=1e-5)
    assert score({}, Term("word")) == score({"title": 0.0}, Term("word")) == []


def test_vectors_of_another_space_take_no_part(store):
    store.put(TENANT, [make(1, "word")], unit(1, 0)[None], "small")
    store.put(TENANT, [make(2, "word")], unit(1, 0, 0)[None], "large")
    assert found(store, "", unit(1, 0), space="small") == {1}
    assert found(store, "", unit(1, 0, 0), space="large") == {2}
    hits = scores(store, ask("word", unit(1, 0), space="small"))
    assert hits[1][1] == pytest.approx(1.0, abs=1e-3)
    assert np.isnan(hits[2][1])
    assert found(store, "", unit(1, 0), space="unknown") == set()


def test_equal_scores_rank_by_id(store):
    store.put(TENANT, [make(n, "word") for n in (9, 3, 7, 1)], np.ones((4, 2), np.float32), SPACE)
    hits = scores(store, ask("word", unit(1, 1)))
    assert {id_: hit[2:] for id_, hit in hits.items()} == {1: (0, 0), 3: (1, 1), 7: (2, 2), 9: (3, 3)}


@pytest.mark.parametrize("word", ["ümläut", "зима", "東京", "👩‍👩‍👧", "a.b-c_d", "‮rtl", "\x00nul", "x" * 5000, "'\"();--"])
def test_terms_of_every_script_are_found(store, word):
    store.put(TENANT, [make(1, f"one {word} two"), make(2, "one two")], None, SPACE)
    assert found(store, word) == {1}
    assert store.get(TENANT, [f"{1:016x}"])[0].content == f"one {word} two"


# ---------------------------------------------------------------------------------------------------- availability
def test_switched_off_chunks_are_not_found_until_switched_on(store):
    store.put(TENANT, [make(n, "word", document=f"doc{1 + n % 2}") for n in range(6)], np.ones((6, 2), np.float32), SPACE)
    assert store.set_available(TENANT, documents(), False) == 3
    assert found(store, "word", unit(1, 1)) == {1, 3, 5}
    assert found(store, "word", unit(1, 1), available=None) == set(range(6))
    assert found(store, "word", available=False) == found(store, "", unit(1, 1), available=False) == {0, 2, 4}
    assert store.get(TENANT, [f"{0:016x}"])[0].available is False
    assert store.set_available(TENANT, documents(), True) == 3
    assert found(store, "word") == found(store, "", unit(1, 1)) == set(range(6))


def test_chunks_put_switched_off_stay_off(store):
    store.put(TENANT, [make(1, "word", available=False), make(2, "word")], np.ones((2, 2), np.float32), SPACE)
    assert found(store, "word", unit(1, 1)) == {2}


def test_many_switched_off_hits_do_not_push_out_the_others(store):
    store.put(TENANT, [make(n, "word") for n in range(500)] + [make(900, "word and much more beside it", document="doc2")], None, SPACE)
    store.set_available(TENANT, documents(), False)
    assert found(store, "word", text_k=5) == {900}


# ---------------------------------------------------------------------------------------------------- delete, count, list
@pytest.mark.parametrize(
    ("selector", "left"),
    [
        (ChunkSelector(dataset_ids=("d1",)), {2, 3}),
        (ChunkSelector(document_ids=("doc1", "doc3")), {2}),
        (ChunkSelector(chunk_ids=(f"{1:016x}", f"{99:016x}")), {0, 2, 3}),
        (ChunkSelector(versions_below=2), {0, 1, 2}),
        (ChunkSelector(versions_below=3, with_added=True), {1}),
        (ChunkSelector(document_ids=("doc1",), versions_below=5), {0, 2, 3}),
        (ChunkSelector(dataset_ids=("d1",), document_ids=("doc2",)), {0, 1, 2, 3}),
        (ChunkSelector(chunk_ids=()), {0, 1, 2, 3}),
    ],
)
def test_delete_takes_what_every_condition_selects(store, selector, left):
    store.put(TENANT, [
        make(0, "word", version=0), make(1, "word", version=3),
        make(2, "word", dataset="d2", document="doc2", version=2), make(3, "word", dataset="d2", document="doc3", version=1),
    ], np.ones((4, 2), np.float32), SPACE)  # fmt: skip
    assert store.count(TENANT, selector) == 4 - len(left)
    assert store.delete(TENANT, selector) == 4 - len(left)
    assert store.count(TENANT, selector) == 0
    assert found(store, "word") == found(store, "", unit(1, 1)) == left


def test_chunks_added_by_hand_go_with_a_drop_of_a_later_version_only(store):
    versions = {0: 0, 1: -2, 2: -3, 3: -4, 4: 3, 5: 2}
    store.put(TENANT, [make(n, "word", version=version) for n, version in versions.items()], None, SPACE)
    assert store.delete(TENANT, ChunkSelector(versions_below=3)) == 1
    assert store.delete(TENANT, ChunkSelector(versions_below=3, with_added=True)) == 2
    assert found(store, "word") == {2, 3, 4}
    assert [chunk.version for chunk in store.get(TENANT, [f"{2:016x}", f"{3:016x}"])] == [-3, -4]


@pytest.mark.parametrize("call", ["delete", "count"])
def test_a_selector_without_a_condition_is_refused(store, call):
    with pytest.raises(InvalidArgument):
        getattr(store, call)(TENANT, ChunkSelector())


def test_deleted_hits_do_not_push_out_the_others(store):
    store.put(TENANT, [make(n, "word") for n in range(300)] + [make(900, "word and much more", document="doc2")], None, SPACE)
    store.delete(TENANT, documents())
    assert found(store, "word", text_k=2) == {900}


def test_a_deleted_chunk_may_come_back(store):
    for _ in range(3):
        store.put(TENANT, [make(1, "word")], unit(1, 0)[None], SPACE)
        store.delete(TENANT, documents())
        assert found(store, "word", unit(1, 0)) == set()
    store.put(TENANT, [make(1, "word")], unit(1, 0)[None], SPACE)
    assert found(store, "word") == found(store, "", unit(1, 0)) == {1}


def test_list_is_ordered_and_paged(store):
    store.put(TENANT, [
        make(1, position=2), make(2, position=1, created_at=5.0), make(3, position=1, created_at=9.0),
        make(0xFFFFFFFFFFFFFFFF, position=1, created_at=5.0), make(5, position=0, available=False), make(6, document="doc2"),
    ], None, SPACE)  # fmt: skip

    def ids(**fields):
        total, chunks = store.list(TENANT, "doc1", **fields)
        return total, [int(chunk.id, 16) for chunk in chunks]

    assert ids() == (5, [5, 3, 2, 0xFFFFFFFFFFFFFFFF, 1])
    assert ids(offset=1, limit=2) == (5, [3, 2])
    assert ids(offset=9) == (5, [])
    assert ids(available=True, limit=1) == (4, [3])
    assert ids(available=False) == (1, [5])
    assert ids(chunk_ids=[f"{n:016x}" for n in (1, 3, 6)]) == (2, [3, 1])
    assert store.list(TENANT, "unknown") == (0, [])


# ---------------------------------------------------------------------------------------------------- vectors
def test_vectors_are_unit_rows_in_the_order_asked_for(store):
    store.put(TENANT, [make(1), make(2)], np.array([[3, 4], [0, 5]], np.float32), SPACE)
    rows = store.vectors(TENANT, [f"{n:016x}" for n in (2, 7, 1)], SPACE)
    assert rows.dtype == np.float32
    assert rows[0] == pytest.approx([0, 1], abs=1e-3)
    assert np.isnan(rows[1]).all()
    assert rows[2] == pytest.approx([0.6, 0.8], abs=1e-3)
    assert np.linalg.norm(rows[2]) == pytest.approx(1.0, abs=1e-5)


def test_vectors_of_an_unknown_space_have_no_dimension(store):
    store.put(TENANT, [make(1)], unit(1, 0)[None], SPACE)
    assert store.vectors(TENANT, [f"{1:016x}"], "unknown").shape == (1, 0)


# ---------------------------------------------------------------------------------------------------- tenants
def test_tenants_see_nothing_of_each_other(store):
    store.put(TENANT, [make(1, "word")], unit(1, 0)[None], SPACE)
    store.put(OTHER, [make(1, "thing"), make(2, "word")], np.ones((2, 3), np.float32), SPACE)
    assert found(store, "word") == {1}
    assert found(store, "word", tenant=OTHER) == {2}
    assert store.get(OTHER, [f"{1:016x}"])[0].content == "thing"
    assert store.delete(OTHER, documents()) == 2
    assert store.count(TENANT, documents()) == 1


def test_other_tenants_do_not_change_the_scores(store):
    store.put(TENANT, [make(1, "word"), make(2, "other")], None, SPACE)
    before = scores(store, ask("word"))[1][0]
    store.put(OTHER, [make(n, "word word") for n in range(500)], None, SPACE)
    assert scores(store, ask("word"))[1][0] == before


def test_a_dropped_tenant_is_empty_and_can_begin_again(store):
    store.put(TENANT, [make(1, "word")], unit(1, 0)[None], SPACE)
    store.put(OTHER, [make(1, "word")], unit(1, 0)[None], SPACE)
    store.drop_tenant(TENANT)
    store.drop_tenant(TENANT)
    assert found(store, "word", unit(1, 0)) == set()
    assert found(store, "word", tenant=OTHER) == {1}
    store.put(TENANT, [make(2, "word")], unit(1, 0, 0)[None], SPACE)
    assert found(store, "word") == found(store, "", unit(1, 0, 0)) == {2}


# ---------------------------------------------------------------------------------------------------- from one store to another
def everything(store: ChunkStore, **where) -> list:
    """(chunk, space, vector's bytes) of all that a scan gives, in its order."""
    items = [item for page in store.scan(TENANT, **where) for item in page]
    return [(item.chunk, item.space, None if item.vector is None else item.vector.tobytes()) for item in items]


def test_what_was_scanned_is_loaded_into_another_store_bit_for_bit(store, tmp_path: Path):
    vectors = np.random.default_rng(7).normal(size=(40, 8)).astype(np.float32)
    texts = [f"word{n} \U0001f600 \u4e2d\u6587 {'long ' * n}" for n in range(40)]
    chunks = [make((n * 0x0FEDCBA987654321) % 2**64, texts[n], position=n, created_at=1763687654.1234567 + n) for n in range(40)]
    store.put(TENANT, chunks[:20], vectors[:20], SPACE)
    store.put(TENANT, chunks[20:30], vectors[20:30, :4], "another")
    store.put(TENANT, chunks[30:], None, "")
    first, again = EmbeddedStore(tmp_path / "first"), EmbeddedStore(tmp_path / "again")
    try:
        for source, target in ((store, first), (first, again)):
            for page in source.scan(TENANT, size=7):
                target.load(TENANT, page)
            target.flush(TENANT)
        store.drop_tenant(TENANT)
        for page in again.scan(TENANT):
            store.load(TENANT, page)
            store.load(TENANT, page)
        store.flush(TENANT)
        assert everything(store) == everything(first) == everything(again)
        assert [item[0] for item in everything(store)] == sorted(chunks, key=lambda chunk: chunk.id)
        assert store.search(ask("word3", vectors[3] / np.linalg.norm(vectors[3]))).ids.tolist()
        assert found(store, "word35") == {int(chunks[35].id, 16)}
        assert np.isnan(store.vectors(TENANT, [chunks[35].id], SPACE)).all()
    finally:
        first.close()
        again.close()


def test_a_scan_begins_behind_an_id_and_comes_in_pages(store):
    assert list(store.scan(TENANT)) == []
    store.put(TENANT, [make(n, "word") for n in (1, 2, 3, 0xF000000000000000)], None, "")
    assert [len(page) for page in store.scan(TENANT, size=3)] == [3, 1]
    assert [item[0].id for item in everything(store, after=f"{2:016x}")] == [f"{3:016x}", "f000000000000000"]
    assert list(store.scan(OTHER)) == []


def test_loading_replaces_what_is_there_and_its_vector(store):
    store.put(TENANT, [make(1, "old")], np.ones((1, 4), np.float32), SPACE)
    store.load(TENANT, [StoredChunk(make(1, "new"))])
    store.flush(TENANT)
    assert (found(store, "old"), found(store, "new")) == (set(), {1})
    assert everything(store) == [(make(1, "new"), "", None)]


# ---------------------------------------------------------------------------------------------------- at the same time
def test_threads_write_and_search_at_the_same_time(store):
    errors = []

    def work(worker: int) -> None:
        try:
            for turn in range(8):
                numbers = [worker * 1000 + turn * 10 + n for n in range(10)]
                store.put(TENANT, [make(n, f"word w{n}", document=f"doc{worker}") for n in numbers], np.ones((10, 4), np.float32), SPACE)
                assert numbers[3] in found(store, f"w{numbers[3]}")
                assert set(numbers) <= found(store, "", unit(1, 1, 1, 1))
                assert store.delete(TENANT, ChunkSelector(chunk_ids=(f"{numbers[0]:016x}",))) == 1
                assert found(store, f"w{numbers[0]}") == set()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.count(TENANT, ChunkSelector(dataset_ids=("d1",))) == 4 * 8 * 9


def test_health_is_green_and_close_may_come_twice(store):
    store.put(TENANT, [make(1, "word")], None, SPACE)
    assert store.health()["status"] == "green"
    store.close()
    store.close()
