"""The alternate stack for signals of a thread, kept as it is while a library puts its own in its place.

OpenVINO gives the thread that compiles a model a larger one, for the registers of AMX, puts back what it found when the
model goes, and frees its own. Where models go in another order than they came, what it puts back is free memory, and
the next signal (Ctrl-C, a time limit) ends the process by SIGSEGV.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards the calling thread has the stack for signals that it had before, or none; on Linux."""
    if sys.platform != "linux":
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)
