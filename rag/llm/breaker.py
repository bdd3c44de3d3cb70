"""The circuit breaker of a vendor's endpoint, and what of its errors says something about its health."""

from rag.breaker import Breaker
from rag.errors import ProviderBusy, ProviderError, ProviderRefused, ProviderUnreachable
from rag.llm.transport import RequestTimeout


class CircuitOpen(ProviderUnreachable):
    """The endpoint failed too often and is not asked now. Nothing was sent."""


class NoTurn(ProviderBusy):
    """Our own limit of calls at once left no room for this one: no fault of the endpoint."""


class VendorBreaker(Breaker):
    """A 4xx other than 429 is no failure of the endpoint. A rejected request shows that it answers, one it did not get (408) nothing."""

    def refusal(self, seconds: float) -> ProviderError:
        return CircuitOpen(f"{self.name} failed too often and is left alone for a while")

    def is_failure(self, error: BaseException) -> bool:
        return isinstance(error, ProviderError) and not isinstance(error, ProviderRefused | RequestTimeout | NoTurn)

    def is_answer(self, error: BaseException) -> bool:
        return isinstance(error, ProviderRefused)

    def asked_for(self, error: BaseException) -> float:
        return (error.retry_after_seconds or 0.0) if isinstance(error, ProviderBusy) else 0.0
