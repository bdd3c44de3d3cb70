"""What a server holds is counted whole."""

import _thread
import asyncio

from load.sampling import Sampler, Watch


async def test_threads_that_python_did_not_count_are_held_too():
    sampler = Sampler([], asyncio.get_running_loop(), Watch())
    before = sampler.figures().held.threads
    # as those of a native library, these are not among `threading.enumerate()`
    ends = [_thread.allocate_lock() for _ in range(3)]
    for end in ends:
        end.acquire()
        _thread.start_new_thread(end.acquire, ())
    assert sampler.figures().held.threads == before + 3
    for end in ends:
        end.release()
