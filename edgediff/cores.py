"""The processors that this process may use."""

import os


def usable_cores() -> int:
    """Logical cores that this process may use, by its affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
