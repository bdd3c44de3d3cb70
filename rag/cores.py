"""How many cores this process may use."""

import math
import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # of the control group that a container sees as its own


def cores(cpu_max: Path = CPU_MAX) -> int:
    """The cores that the process is bound to, and no more than its container's quota rounded up.

    `cpu_max` holds the quota and its period, or `max` for none, as cgroup v2 writes them:
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, cpu_max.read_text("ascii").split())
    except (OSError, ValueError):  # no such file here, or no quota
        return bound
    return min(bound, math.ceil(quota / period))
