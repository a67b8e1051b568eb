"""Checks of a model's arguments."""

from __future__ import annotations


def check_least(least: int, **sizes: int) -> None:
    """Checks that sizes are not too small.

    Raises:
        ValueError: one is below `least`; the message names it.
    """
    for name, value in sizes.items():
        if value < least:
            raise ValueError(f"{name}={value}: it is {least} or more")
