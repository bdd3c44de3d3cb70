"""Runs the steps of an answer that do not need each other at the same time.

A flow is a handful of named nodes and the order between them. A node that fails is left out: its default stands in and its
name is reported, so that an answer can say what it had to do without. A node without which there is no answer is `required`.
"""

import asyncio
import graphlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import structlog

from rag.deadline import at_most
from rag.errors import why_failed
from rag.stages import stage

SHARE_OF_TIME = 0.4  # what a node with a limit gets of the time left, so that the answer is reached without it

log = structlog.get_logger("millrace.flow")

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """A step. `work` gets the values of the nodes that are done, by name, and is run when those in `after` are.

    `default` is its value when it fails or takes longer than `timeout_seconds`, or than its share of the time left (None: no limit).
    A `required` node's error is the flow's error instead.
    """

    name: str
    work: Callable[[Values], Awaitable[Any]]
    after: tuple[str, ...] = ()
    timeout_seconds: float | None = None
    default: Any = None
    required: bool = False


@dataclass(slots=True)
class Outcome:
    """What the nodes made: values by name, the errors of those that failed, and the milliseconds each took."""

    values: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def degraded(self) -> list[str]:
        """The names of the nodes that failed, in the order of their failures."""
        return list(self.failures)

    @property
    def reasons(self) -> dict[str, str]:
        """Why they failed, in our own words."""
        return {name: why_failed(error) for name, error in self.failures.items()}


class Flow:
    """Nodes in a checked order. Raises `ValueError` for a cycle, an unknown predecessor or a name used twice."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = {node.name: node for node in nodes}
        if len(self._nodes) != len(nodes):
            raise ValueError("two nodes have the same name")
        if unknown := {name for node in nodes for name in node.after} - self._nodes.keys():
            raise ValueError(f"no node is named {', '.join(sorted(unknown))}")
        graphlib.TopologicalSorter({node.name: node.after for node in nodes}).prepare()
        self._followers = {name: [node for node in nodes if name in node.after] for name in self._nodes}

    async def run(self) -> Outcome:
        """Run every node as soon as its predecessors are done.

        Raises what a required node raised, after the others were cancelled. Cancelling cancels all nodes.
        """
        outcome = Outcome()
        waiting_for = {name: len(node.after) for name, node in self._nodes.items()}

        async def run_one(node: Node) -> None:
            await _run_node(node, outcome)
            for follower in self._followers[node.name]:
                waiting_for[follower.name] -= 1
                if not waiting_for[follower.name]:
                    group.create_task(run_one(follower))

        try:
            async with asyncio.TaskGroup() as group:
                for node in self._nodes.values():
                    if not node.after:
                        group.create_task(run_one(node))
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        return outcome


async def _run_node(node: Node, outcome: Outcome) -> None:
    started = time.perf_counter()
    try:
        limit = nullcontext() if node.timeout_seconds is None else at_most(node.timeout_seconds, SHARE_OF_TIME)
        async with limit:
            with stage(node.name):
                outcome.values[node.name] = await node.work(outcome.values)
    except Exception as error:
        if node.required:
            raise
        # the boundary where a failed step becomes a lesser answer; messages may quote the user, so only the class is logged
        log.warning("step left out", step=node.name, error=type(error).__name__)
        outcome.values[node.name] = node.default
        outcome.failures[node.name] = error
    outcome.timings[node.name] = round((time.perf_counter() - started) * 1000, 3)


def _first(failures: BaseExceptionGroup) -> BaseException:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
