"""Asks one reranker after the other until one answers, within the time that reranking may take."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rag.deadline import at_most, seconds_left, within
from rag.errors import DeadlineExceeded, Overloaded, ProviderError, ProviderUnreachable, Unavailable
from rag.ports import Reranker
from rag.threads import Lane

# What is kept of the request's time for the answer without reranking.
_SHARE_OF_TIME = 0.9
_FAILURES = (ProviderError, Overloaded, Unavailable, DeadlineExceeded)


class RerankFailed(ProviderError):
    """No reranker answered. The message says of each one why, in the order they were asked."""


class FailoverReranker:
    """A `Reranker` over several, for one call. The first one to be asked is the one that was wanted, the others stand in for it.

    `excuse` says after the call why the wanted one did not answer, and which one did; "" when it was the wanted one.
    """

    def __init__(self, rerankers: Mapping[str, Reranker], lane: Lane, seconds: float) -> None:
        """`rerankers` by what messages call them. One that has only `similarity` runs in the lane. All together get `seconds`."""
        self._rerankers = dict(rerankers)
        self._lane = lane
        self._seconds = seconds
        self.excuse = ""

    def check(self) -> None:
        """Raise `RerankFailed` when none of them is asked now."""
        reasons = []
        for reranker in self._rerankers.values():
            check = getattr(reranker, "check", None)
            if check is None:
                return
            try:
                check()
            except ProviderError as refusal:
                reasons.append(str(refusal))
            else:
                return
        raise RerankFailed("; ".join(reasons))

    async def async_similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        """As the first reranker that succeeds. Each gets an equal part of the time that is left when it is asked.

        Raises `RerankFailed`; `InvalidArgument` for what no reranker would take.
        """
        reasons: list[str] = []
        with within(self._time()):
            for name, reranker, seconds in self._turns():
                try:
                    answer = await self._ask(name, reranker, seconds, query, texts)
                except _FAILURES as error:
                    reasons.append(str(error))
                else:
                    self._excuse(reasons, name)
                    return answer
        raise RerankFailed("; ".join(reasons))

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        """The same for code on a thread of its own. A reranker that does not keep to its time is not cut short."""
        reasons: list[str] = []
        with within(self._time()):
            for name, reranker, seconds in self._turns():
                try:
                    with within(seconds):
                        answer = reranker.similarity(query, texts)
                except _FAILURES as error:
                    reasons.append(str(error))
                else:
                    self._excuse(reasons, name)
                    return answer
        raise RerankFailed("; ".join(reasons))

    def _excuse(self, reasons: Sequence[str], name: str) -> None:
        self.excuse = "; ".join([*reasons, f"model {name} answered instead"]) if reasons else ""

    def _time(self) -> float:
        return min(self._seconds, _SHARE_OF_TIME * seconds_left())

    def _turns(self) -> Iterator[tuple[str, Reranker, float]]:
        """Each reranker, when it is its turn, and the seconds it may take."""
        for asked, (name, reranker) in enumerate(self._rerankers.items()):
            yield name, reranker, seconds_left() / (len(self._rerankers) - asked)

    async def _ask(
        self, name: str, reranker: Reranker, seconds: float, query: str, texts: Sequence[str]
    ) -> tuple[np.ndarray, int | None]:  # fmt: skip
        if seconds <= 0:
            raise DeadlineExceeded(f"no time was left to ask model {name}")
        ask = getattr(reranker, "async_similarity", None)
        try:
            async with at_most(seconds):
                if ask is not None:
                    return await ask(query, texts)
                return await self._lane.run(reranker.similarity, query, texts)
        except TimeoutError:
            raise ProviderUnreachable(f"model {name} did not answer within {seconds:.3g} seconds") from None
