"""What requests usually take, as admission learns it from those it has let in."""

from rag.ports import Clock

FIRST_SAMPLES = 4
NEW = 1 / 32
CLIP, LEAST_CLIP = 2.0, 0.001


class Usual:
    """A mean that no single sample rules: 0.0 until there are a few, then the least of those; later ones count as at most twice the mean.

    With `rise_seconds` it falls soon and takes at least so long to follow what is higher: load that ends the calm is not usual.
    """

    __slots__ = ("_at", "_clock", "_least", "_missing", "_rise_seconds", "value")

    def __init__(self, clock: Clock, rise_seconds: float = 0.0) -> None:
        self.value = 0.0
        self._clock = clock
        self._rise_seconds = rise_seconds
        self._least = float("inf")
        self._missing = FIRST_SAMPLES
        self._at = 0.0

    def take(self, sample: float) -> None:
        """Take in a sample."""
        now = self._clock()
        if self._missing:
            self._missing -= 1
            self._least = min(self._least, sample)
            self.value = 0.0 if self._missing else self._least
        else:
            share = min(NEW, (now - self._at) / self._rise_seconds) if self._rise_seconds and sample > self.value else NEW
            self.value += (min(sample, max(CLIP * self.value, LEAST_CLIP)) - self.value) * share
        self._at = now
