"""The load test runs as `make load` does: a real server, real users, nothing fails, a report is there."""

import re
import subprocess
import sys
import tomllib
from argparse import Namespace

import pytest

from load.locust_run import OUT, SLOW_CALLBACK_MS, own_words, questions, run, table, toml


def simulated(**options: float) -> Namespace:
    return Namespace(model="simulated", rerank_seconds=0.05, jitter=0.3, failure_rate=0.0, **options)


@pytest.mark.slow
def test_users_search_and_chat_without_a_failure(capsys):
    report = OUT / "report.html"
    report.unlink(missing_ok=True)
    met = run(simulated(users=8, seconds=6, slow_callback_ms=SLOW_CALLBACK_MS))
    printed = capsys.readouterr().out
    # nothing failed, and no step of the loop's took more CPU time than it may: that of others on the machine does not count
    assert met, printed
    assert "| search, reranked | POST |" in printed
    assert report.stat().st_size > 10_000


@pytest.mark.slow
def test_a_held_event_loop_fails_the_run(capsys):
    met = run(simulated(users=2, seconds=2, slow_callback_ms=0.5))
    printed = capsys.readouterr().out
    assert "\n0 requests failed" in printed
    assert "event loop held for more than 0.5 ms: 0 times" not in printed
    assert not met


def test_what_the_processes_below_the_server_hold_counts_with_its_own():
    child = "import sys; kept = bytearray(100 << 20); print(flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        words = own_words(Namespace(process=process, get=lambda path: (200, b"")), 1.5)
        process.stdin.close()
    resident = re.fullmatch(r"server and all below it: 1\.5 s of CPU, (\d+) MB resident, \d+ proportional", words)
    assert int(resident[1]) >= 100


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
