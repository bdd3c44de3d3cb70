"""How often Python's garbage collector works in a process that serves (docs/adr/0016-threads-and-collector.md)."""

import gc

# The garbage collector's three generations. A retrieval's thousand objects should not set off a search for cycles, and no search
# should take 20 ms: with 20,000 the first one took up to 43 at 100 callers, with these 10 and the second one 14. The third one walks
# through all that requests have alive.
COLLECT_AFTER = (3_000, 3, 100)


def spare_the_collector() -> None:
    """What the start has made stays: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
