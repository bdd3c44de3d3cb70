"""rag/flow/nodes.py: steps side by side, failures that degrade, cancellation that passes."""

import asyncio

import pytest

from rag.errors import ProviderUnreachable, Unavailable
from rag.flow.nodes import Flow, Node, Values


def giving(value: object):
    async def work(values: Values) -> object:
        return value

    return work


def failing(error: Exception):
    async def work(values: Values) -> object:
        raise error

    return work


@pytest.mark.parametrize(
    "nodes",
    [
        [Node("a", giving(1), ("b",)), Node("b", giving(2), ("a",))],
        [Node("a", giving(1), ("nobody",))],
        [Node("a", giving(1)), Node("a", giving(2))],
    ],
    ids=["cycle", "unknown predecessor", "name twice"],
)
def test_a_flow_that_cannot_run_is_refused_when_built(nodes: list[Node]) -> None:
    with pytest.raises(ValueError, match=r"cycle|named|name"):
        Flow(nodes)


async def test_a_node_sees_what_its_predecessors_made() -> None:
    async def add(values: Values) -> int:
        return values["one"] + values["two"]

    outcome = await Flow([Node("sum", add, ("one", "two")), Node("one", giving(1)), Node("two", giving(2))]).run()
    assert outcome.values["sum"] == 3
    assert outcome.degraded == []
    assert set(outcome.timings) == {"one", "two", "sum"}


async def test_nodes_that_do_not_need_each_other_run_side_by_side() -> None:
    meeting = asyncio.Barrier(3)

    async def meet(values: Values) -> str:
        await meeting.wait()
        return "met"

    async with asyncio.timeout(5):
        outcome = await Flow([Node(name, meet) for name in "abc"]).run()
    assert set(outcome.values.values()) == {"met"}


async def test_a_failing_node_leaves_its_default_and_its_name() -> None:
    flow = Flow([Node("weak", failing(ProviderUnreachable("gone")), default="instead"), Node("next", giving(1), ("weak",))])
    outcome = await flow.run()
    assert outcome.values == {"weak": "instead", "next": 1}
    assert outcome.degraded == ["weak"]
    assert outcome.reasons == {"weak": "gone"}


@pytest.mark.parametrize(
    ("error", "reason"), [(TimeoutError(), "no answer in time"), (KeyError("what the user wrote"), "an unexpected error")]
)
async def test_the_reason_for_a_failure_is_told_in_our_own_words(error: Exception, reason: str) -> None:
    assert (await Flow([Node("weak", failing(error))]).run()).reasons == {"weak": reason}


async def test_a_node_over_its_time_leaves_its_default() -> None:
    async def never(values: Values) -> None:
        await asyncio.Event().wait()

    outcome = await Flow([Node("slow", never, timeout_seconds=0.01, default=())]).run()
    assert outcome.values["slow"] == ()
    assert outcome.degraded == ["slow"]


async def test_a_required_nodes_error_is_the_flows_and_stops_the_others() -> None:
    stopped = asyncio.Event()

    async def long(values: Values) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    error = Unavailable("the store is closed")
    with pytest.raises(Unavailable) as raised:
        await Flow([Node("other", long), Node("needed", failing(error), required=True)]).run()
    assert raised.value is error
    assert stopped.is_set()


async def test_cancelling_the_flow_cancels_its_nodes_and_is_not_swallowed() -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def long(values: Values) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    task = asyncio.create_task(Flow([Node("long", long)]).run())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.is_set()
