"""The sandbox: whatever a job does, only that job fails, and the next one runs."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import textwrap
from contextlib import aclosing
from pathlib import Path

import pytest

from rag.errors import ParseFailed, ParserKilled, Unavailable
from rag.ingest import sandbox as sandbox_module
from rag.ingest.sandbox import Sandbox

HERE = Path(__file__).parent
DEADLINE_SECONDS = 30.0


@pytest.fixture
async def sandbox():
    sandbox = Sandbox("hostile_jobs:run", memory_bytes=256 << 20, import_paths=[HERE])
    yield sandbox
    await sandbox.close()


async def done(sandbox, deadline_seconds=DEADLINE_SECONDS, **job):
    async with aclosing(sandbox.run(job, deadline_seconds)) as messages:
        return [message async for message in messages]


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.01)


async def gone(process_id):
    """Wait until the process has ended."""
    await until(lambda: not lives(process_id))


async def test_messages_come_in_order(sandbox):
    assert [message["number"] for message in await done(sandbox, do="count", to=500)] == list(range(500))


async def test_a_process_serves_job_after_job(sandbox):
    first, second = await done(sandbox, do="pid"), await done(sandbox, do="pid")
    assert first == second
    assert first[0]["pid"] == sandbox.process_ids[0]


async def test_a_signal_to_end_that_all_processes_of_a_service_get_crashes_no_file(sandbox):
    (first,) = await done(sandbox, do="pid")
    for process_id in (first["pid"], parent_of(first["pid"])):
        os.kill(process_id, signal.SIGTERM)
    assert await done(sandbox, do="pid") == [first]


async def test_a_process_is_replaced_after_so_many_jobs():
    sandbox = Sandbox("hostile_jobs:run", jobs_per_process=2, import_paths=[HERE])
    pids = [(await done(sandbox, do="pid"))[0]["pid"] for _ in range(4)]
    await sandbox.close()
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.parametrize("evil", ["abort", "exit"])
async def test_a_crash_fails_only_its_job(sandbox, evil):
    with pytest.raises(ParserKilled, match="crashed"):
        await done(sandbox, do=evil)
    assert len(await done(sandbox, do="count", to=3)) == 3


@pytest.mark.parametrize("evil", ["hang", "spin", "chatter"])
async def test_a_job_over_its_deadline_is_killed(sandbox, evil):
    with pytest.raises(ParserKilled, match=r"longer than 0\.3 seconds"):
        await done(sandbox, deadline_seconds=0.3, do=evil)
    assert sandbox.process_ids == ()
    assert len(await done(sandbox, do="count", to=3)) == 3


async def test_a_job_over_its_memory_fails_and_says_so(sandbox):
    with pytest.raises(ParserKilled, match="memory than a parser may use"):
        await done(sandbox, do="eat", megabytes=600)
    assert await done(sandbox, do="eat", megabytes=20) == [{"megabytes": 20}]


async def test_an_error_nobody_foresaw_keeps_the_users_text_to_itself(sandbox):
    with pytest.raises(ParseFailed) as failure:
        await done(sandbox, do="raise")
    assert str(failure.value) == "the file cannot be parsed (ValueError)"
    with pytest.raises(ParseFailed, match="nested too deeply"):
        await done(sandbox, do="recurse")


async def test_cancelling_kills_the_job(sandbox):
    started = asyncio.get_running_loop().create_future()

    async def hang():
        async with aclosing(sandbox.run({"do": "hang"}, DEADLINE_SECONDS)) as messages:
            async for message in messages:
                started.set_result(message["pid"])

    hanging = asyncio.create_task(hang())
    process_id = await started
    hanging.cancel()
    await asyncio.wait([hanging])
    await gone(process_id)
    assert sandbox.process_ids == ()
    assert len(await done(sandbox, do="count", to=3)) == 3


async def test_cancelling_while_a_process_is_started_does_not_mix_processes_up(sandbox):
    for _ in range(3):
        starting = asyncio.create_task(done(sandbox, do="pid"))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
    assert (await done(sandbox, do="pid"))[0]["pid"] == sandbox.process_ids[0]


async def test_a_job_that_is_not_read_from_waits(sandbox):
    async with aclosing(sandbox.run({"do": "count", "to": 2_000_000}, DEADLINE_SECONDS)) as messages:
        first = await anext(messages)
        resident = resident_bytes(sandbox.process_ids[0])
        assert first == {"number": 0}
        assert resident < 200 << 20


async def test_no_more_jobs_run_at_once_than_processes():
    sandbox = Sandbox("hostile_jobs:run", processes=2, import_paths=[HERE])
    jobs = [asyncio.create_task(done(sandbox, do="hang")) for _ in range(4)]
    await until(lambda: len(sandbox.process_ids) >= 2)
    assert len(sandbox.process_ids) == 2
    for job in jobs:
        job.cancel()
    await asyncio.wait(jobs)
    await sandbox.close()


async def test_idle_processes_end_and_so_does_the_nursery(monkeypatch):
    monkeypatch.setattr(sandbox_module, "NURSERY_IDLE_SECONDS", 0.05)
    sandbox = Sandbox("hostile_jobs:run", idle_seconds=0.05, import_paths=[HERE])
    process_id = (await done(sandbox, do="pid"))[0]["pid"]
    nursery_id = parent_of(process_id)
    await gone(process_id)
    await gone(nursery_id)
    assert (await done(sandbox, do="pid"))[0]["pid"] != process_id
    await sandbox.close()


async def test_a_killed_nursery_takes_its_children_along_and_is_started_anew(sandbox):
    process_id = (await done(sandbox, do="pid"))[0]["pid"]
    os.kill(parent_of(process_id), signal.SIGKILL)
    await gone(process_id)
    assert (await done(sandbox, do="pid"))[0]["pid"] != process_id


async def test_closing_ends_everything_and_refuses_new_jobs():
    sandbox = Sandbox("hostile_jobs:run", import_paths=[HERE])
    process_id = (await done(sandbox, do="pid"))[0]["pid"]
    await sandbox.close()
    await gone(process_id)
    with pytest.raises(Unavailable):
        await done(sandbox, do="pid")


async def test_a_target_that_cannot_be_imported_is_unavailable():
    sandbox = Sandbox("no_such_module:run")
    with pytest.raises(Unavailable, match="no parser process"):
        await done(sandbox, do="pid")
    await sandbox.close()


async def test_a_killed_server_leaves_no_process_behind():
    server = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        from rag.ingest.sandbox import Sandbox
        async def main():
            sandbox = Sandbox("hostile_jobs:run", import_paths=[Path({str(HERE)!r})])
            async for message in sandbox.run({{"do": "hang"}}, 60):
                print(message["pid"], flush=True)
        asyncio.run(main())
    """)
    process = subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    with process:
        child_id = int(process.stdout.readline())
        nursery_id = parent_of(child_id)
        process.kill()
    await gone(child_id)
    await gone(nursery_id)


def parent_of(process_id):
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1])


def resident_bytes(process_id):
    return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * resource.getpagesize()


def lives(process_id):
    """Whether there is such a process, other than one that has ended and was not reaped."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
