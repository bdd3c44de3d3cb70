"""Turns: tenants in turn, documents of a tenant in turn, and nobody is forgotten."""

import asyncio
from contextlib import suppress

from rag.ingest.turns import Turns


async def batches(turns, tenant_id, document, count, seen):
    for _ in range(count):
        async with turns.turn(tenant_id):
            seen.append(document)
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the document stores its batch and comes back


async def test_a_tenant_with_many_documents_gets_every_other_turn():
    turns, seen = Turns(), []
    async with asyncio.TaskGroup() as group:
        for document in ("a1", "a2", "a3"):
            group.create_task(batches(turns, "a", document, 20, seen))
        group.create_task(batches(turns, "b", "b1", 20, seen))
    first = seen[:30]
    assert 14 <= first.count("b1") <= 16
    assert {first.count("a1"), first.count("a2"), first.count("a3")} == {5}


async def test_one_who_waits_and_is_cancelled_does_not_keep_the_place():
    turns, seen = Turns(), []
    async with turns.turn("a"):
        waiting = asyncio.create_task(batches(turns, "a", "gone", 1, seen))
        let_in = asyncio.create_task(batches(turns, "b", "let in", 1, seen))
        await asyncio.sleep(0)
        waiting.cancel()
    let_in.cancel()  # it is its turn by now, but it does not know yet
    for task in (waiting, let_in):
        with suppress(asyncio.CancelledError):
            await task
    await asyncio.wait_for(batches(turns, "c", "c1", 1, seen), 5)
    assert seen == ["c1"]


async def test_no_more_than_the_places_are_in_at_once():
    turns, inside, most = Turns(2), 0, 0

    async def visit():
        nonlocal inside, most
        async with turns.turn("a"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(visit())
    assert most == 2
