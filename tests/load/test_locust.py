"""The load test runs as `make load` does: a real server, real users, nothing fails, a report is there."""

import tomllib
from argparse import Namespace

import pytest

from load.locust_run import OUT, questions, run, table, toml


@pytest.mark.slow
def test_users_search_and_chat_without_a_failure(capsys):
    report = OUT / "report.html"
    report.unlink(missing_ok=True)
    options = Namespace(model="simulated", users=8, seconds=6, rerank_seconds=0.05, jitter=0.3, failure_rate=0.0)
    run(options)
    printed = capsys.readouterr().out
    assert "\n0 requests failed" in printed
    assert "| search, reranked | POST |" in printed
    assert report.stat().st_size > 10_000


def test_the_models_are_tables_of_the_settings_file():
    models = [{"name": "a", "default": True, "timeout_seconds": 5.0}, {"name": 'b "c"', "concurrency": 4}]
    assert tomllib.loads(toml(models)) == {"models": models}


def test_questions_are_runs_of_the_texts_words_and_the_same_at_every_run():
    text = "The water mill grinds wheat into flour while rivers flood meadows every spring\nshort line"
    asked = questions([text])
    assert asked == questions([text])
    assert all(question.rstrip("?") in text for question in asked)


def test_the_table_has_the_quantiles_of_each_name():
    times = {"10.0": 94, "200.0": 5, "900.0": 1}
    entry = {"name": "search", "method": "POST", "num_requests": 100, "num_failures": 2, "response_times": times, "max_response_time": 900}
    assert table([entry], 10).splitlines()[2] == "| search | POST | 100 | 2 | 10.0 | 10 | 200 | 200 | 900 |"
