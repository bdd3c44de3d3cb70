"""Fusion holds the contract's formula, keeps a weak arm from spoiling a strong one, and is one stable order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.nlp.fuse import BEST_TERM, Ranking, fuse, fuse_reranked
from rag.types import Candidates

NO_THRESHOLD = -np.inf


def candidates(text: list[float], vector: list[float], ids: list[int] | None = None, degraded: tuple[str, ...] = ()) -> Candidates:
    n = len(text)
    return Candidates(
        ids=np.array(ids if ids is not None else range(1, n + 1), dtype=np.uint64),
        documents=["d"],
        document_of=np.zeros(n, dtype=np.int32),
        text_scores=np.array(text, dtype=np.float32),
        vector_scores=np.array(vector, dtype=np.float32),
        text_ranks=np.arange(n, dtype=np.int32),
        vector_ranks=np.arange(n, dtype=np.int32),
        degraded=degraded,
    )


def ranked(found: Candidates, weight: float = 0.3, trust: float = 1.0, threshold: float = NO_THRESHOLD, **more) -> Ranking:
    return fuse(found, vector_weight=weight, trust=trust, threshold=threshold, **more)


def test_similarity_mixes_relative_bm25_and_cosine():
    ranking = ranked(candidates([10.0, 5.0], [0.2, 0.9]))
    assert ranking.rows.tolist() == [0, 1]
    assert ranking.term.tolist() == pytest.approx([BEST_TERM, BEST_TERM / 2])
    assert ranking.vector.tolist() == pytest.approx([0.2, 0.9])
    assert ranking.similarity.tolist() == pytest.approx([0.7 * BEST_TERM + 0.3 * 0.2, 0.7 * BEST_TERM / 2 + 0.3 * 0.9])


@given(
    st.lists(st.tuples(st.floats(0, 50, width=32), st.one_of(st.just(np.nan), st.floats(-1, 1, width=32))), max_size=20),
    st.floats(-0.5, 1.5),
    st.floats(0, 1),
)
def test_the_formula_holds_for_the_callers_weight_whatever_the_trust(scores, weight, trust):
    ranking = ranked(candidates([t for t, _ in scores], [v for _, v in scores]), weight, trust)
    w = max(weight, 0.0)
    assert ranking.similarity == pytest.approx((1 - w) * ranking.term + w * ranking.vector)
    assert (np.diff(ranking.similarity) <= 0).all()
    assert ((ranking.term >= 0) & (ranking.term <= 1) & (ranking.vector >= 0) & (ranking.vector <= 1)).all()


def test_an_untrusted_model_leaves_the_text_arms_order():
    ranking = ranked(candidates([1.0, 3.0, 2.0], [0.9, 0.1, 0.5]), weight=0.9, trust=0.0)
    assert ranking.rows.tolist() == [1, 2, 0]
    assert ranking.similarity.tolist() == pytest.approx([BEST_TERM, BEST_TERM * 2 / 3, BEST_TERM / 3])


def test_a_missing_vector_arm_leaves_the_text_arms_order():
    nan = float("nan")
    assert ranked(candidates([1.0, 3.0], [nan, nan]), weight=1.0).rows.tolist() == [1, 0]
    assert ranked(candidates([1.0, 3.0], [0.9, 0.1], degraded=("vector",)), weight=1.0).rows.tolist() == [1, 0]


def test_a_missing_text_arm_leaves_the_vector_arms_order():
    ranking = ranked(candidates([0.0, 0.0], [0.3, 0.8], degraded=("text",)), threshold=0.2)
    assert ranking.rows.tolist() == [1, 0]
    assert ranking.similarity.tolist() == pytest.approx([0.8, 0.3])


def test_one_chunk_without_a_vector_counts_as_unlike():
    assert ranked(candidates([1.0, 1.0], [float("nan"), 0.5])).similarity.tolist() == pytest.approx(
        [0.7 * BEST_TERM + 0.15, 0.7 * BEST_TERM]
    )


def test_equal_similarities_are_ordered_by_id():
    found = candidates([1.0, 1.0, 1.0], [0.5, 0.5, 0.5], ids=[2**63 + 5, 3, 2**63 + 1])
    assert found.ids[ranked(found).rows].tolist() == [3, 2**63 + 1, 2**63 + 5]


def test_the_order_does_not_depend_on_the_order_of_the_candidates():
    found = candidates([1.0, 4.0, 4.0, 2.0], [0.1, 0.3, 0.3, 0.9])
    shuffled = candidates([2.0, 4.0, 1.0, 4.0], [0.9, 0.3, 0.1, 0.3], ids=[4, 3, 1, 2])
    assert found.ids[ranked(found).rows].tolist() == shuffled.ids[ranked(shuffled).rows].tolist()


def test_the_threshold_cuts_what_is_below_it_only():
    assert ranked(candidates([4.0, 1.0], [0.0, 0.0]), threshold=0.7 * BEST_TERM).rows.tolist() == [0]


def test_without_vector_weight_only_shared_terms_count_and_no_threshold():
    ranking = ranked(candidates([0.0, 4.0, 0.1], [1.0, 0.0, 0.0]), weight=0.0, threshold=0.9)
    assert ranking.rows.tolist() == [1, 2]


def test_a_weight_above_one_is_taken_literally():
    assert ranked(candidates([2.0], [0.5]), weight=1.5).similarity.tolist() == pytest.approx([-0.5 * BEST_TERM + 0.75])


def test_vector_only_candidates_can_be_dropped_while_lexical_ones_exist():
    found = candidates([0.0, 4.0], [1.0, 0.0])
    assert sorted(ranked(found).rows) == [0, 1]
    assert ranked(found, keep_vector_only=False).rows.tolist() == [1]
    assert ranked(candidates([0.0, 0.0], [1.0, 0.5]), keep_vector_only=False).rows.tolist() == [0, 1]


def test_no_candidates_make_an_empty_list():
    assert len(ranked(candidates([], []))) == 0


def test_a_rerankers_scores_stand_in_place_of_the_vector_part():
    found = candidates([4.0, 4.0, 2.0, 1.0], [0.9, 0.8, 0.7, 0.6])
    fused = ranked(found)
    reranked = fuse_reranked(found, fused, np.array([0.1, 0.9, 1.0]), vector_weight=0.3, threshold=0.2)
    assert reranked.rows.tolist() == [1, 0, 2]
    assert reranked.similarity.tolist() == pytest.approx([0.7 * BEST_TERM + 0.27, 0.7 * BEST_TERM + 0.03, 0.35 * BEST_TERM + 0.3])
    assert reranked.vector.tolist() == [0.9, 0.1, 1.0]


def test_the_threshold_is_for_reranked_similarities():
    found = candidates([4.0, 2.0], [0.9, 0.9])
    reranked = fuse_reranked(found, ranked(found), np.array([0.0, 0.0]), vector_weight=0.8, threshold=0.15)
    assert reranked.rows.tolist() == [0]
