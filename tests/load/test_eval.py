"""The scores are those of hand-computed examples, and whole sets run through the real retrieval path."""

import json
import math
from pathlib import Path

import pytest

from load.eval import EvalSet, Score, evaluate, ndcg, read_sets

TITLES = ["Mills", "Rivers", "Birds"]
TEXTS = ["Water mills grind wheat.", "Rivers flood meadows in spring.", "Swallows nest under roofs."]


def write_set(folder: Path, *, beir: bool = False, questions=(("q1", "Which mills grind wheat?"), ("q2", "When do rivers flood?"))) -> None:
    folder.mkdir(parents=True)
    key = "_id" if beir else "id"
    rows = [{key: f"d{i}", "title": title, "text": text} for i, (title, text) in enumerate(zip(TITLES, TEXTS, strict=True))]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text("".join(json.dumps({key: name, "text": text}) + "\n" for name, text in questions))
    grades = folder / "qrels" / "test.tsv" if beir else folder / "qrels.tsv"
    grades.parent.mkdir(exist_ok=True)
    grades.write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td1\t2\nq2\td0\t-1\nq3\td2\t0\n")


def score_of(text: float, vector: float, hybrid: float, **baselines: float) -> Score:
    return Score(EvalSet("s", [], {}, {}, **baselines), {"text": text, "vector": vector, "hybrid": hybrid}, 1.0)


def test_a_perfect_ranking_scores_one():
    assert ndcg(["a", "b", "c"], {"a": 2, "b": 1}) == 1.0


def test_gains_are_linear_and_discounted_by_the_logarithm_of_the_rank():
    # graded 3 and 1: found at ranks 3 and 1
    expected = (1 / math.log2(2) + 3 / math.log2(4)) / (3 / math.log2(2) + 1 / math.log2(3))
    assert ndcg(["b", "x", "a"], {"a": 3, "b": 1}) == pytest.approx(expected)
    assert expected == pytest.approx(0.6885, abs=1e-4)


def test_what_is_found_too_late_scores_nothing():
    assert ndcg([f"x{i}" for i in range(10)] + ["a"], {"a": 1}) == 0.0


def test_removed_documents_leave_no_gap():
    assert ndcg(["translated", "a"], {"a": 1, "translated": -1}) == 1.0
    assert ndcg(["judged", "a"], {"a": 1, "judged": 0}) == pytest.approx(1 / math.log2(3))


def test_the_ideal_holds_no_more_than_ten():
    grades = {f"d{i}": 1 for i in range(30)}
    assert ndcg(list(grades)[:10], grades) == 1.0


def test_the_three_conditions():
    assert score_of(0.90, 0.80, 0.91, text_baseline=0.905, vector_baseline=0.805).failures == []
    assert score_of(0.90, 0.80, 0.896).failures == []
    assert score_of(0.90, 0.80, 0.894).failures == ["hybrid below the better arm"]
    assert score_of(0.80, 0.90, 0.894).failures == ["hybrid below the better arm"]
    assert score_of(0.88, 0.78, 0.91, text_baseline=0.90, vector_baseline=0.80).failures == [
        "text below its baseline",
        "vector below its baseline",
    ]


@pytest.mark.parametrize("beir", [False, True])
def test_sets_are_read_in_either_layout(tmp_path, beir):
    write_set(tmp_path / "mine", beir=beir)
    (found,) = read_sets(tmp_path)
    assert [row["id"] for row in found.documents] == ["d0", "d1", "d2"]
    assert found.questions == {"q1": "Which mills grind wheat?", "q2": "When do rivers flood?"}
    assert found.grades == {"q1": {"d0": 1}, "q2": {"d1": 2, "d0": -1}}


def test_a_folder_that_is_a_set_is_read_itself(tmp_path):
    write_set(tmp_path / "mine")
    assert [found.name for found in read_sets(tmp_path / "mine")] == ["mine"]


def test_baselines_are_optional(tmp_path):
    write_set(tmp_path / "a")
    write_set(tmp_path / "b")
    (tmp_path / "baselines.json").write_text('{"a/bm25": {"nDCG@10": 0.5}, "a/dense": {"nDCG@10": 0.4}}')
    first, second = read_sets(tmp_path)
    assert (first.text_baseline, first.vector_baseline) == (0.5, 0.4)
    assert (second.text_baseline, second.vector_baseline) == (None, None)


def test_an_unknown_set_is_an_error(tmp_path):
    write_set(tmp_path / "mine")
    with pytest.raises(ValueError, match="no set named yours"):
        list(read_sets(tmp_path, ["yours"]))


async def test_a_set_runs_through_the_real_path_and_a_second_run_embeds_nothing(tmp_path):
    write_set(tmp_path / "data" / "mine")
    (first,) = await evaluate(tmp_path / "data", (), None, ("en",), tmp_path / "cache")
    assert first.ndcg == {"text": 1.0, "vector": 1.0, "hybrid": 1.0}
    assert first.failures == []
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "eval").iterdir()}
    assert len(made) == 2
    (second,) = await evaluate(tmp_path / "data", (), None, ("en",), tmp_path / "cache")
    assert second.ndcg == first.ndcg
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "eval").iterdir()} == made


async def test_a_judged_question_that_is_missing_counts_as_not_answered(tmp_path):
    write_set(tmp_path / "data" / "mine", questions=[("q1", "Which mills grind wheat?")])
    (score,) = await evaluate(tmp_path / "data", (), None, ("en",), tmp_path / "cache")
    assert score.ndcg["text"] == 0.5
