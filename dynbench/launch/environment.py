"""Environment variables that a measuring process needs before it starts."""

from __future__ import annotations

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that limit a process to `threads` threads and make its hashes repeatable.

    OpenMP and MKL read them once, when they are loaded, so they must be set before the process starts.
    """
    return {**dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONHASHSEED": "0"}
