"""Colours: one per strategy wherever it appears; markers differ too.

From Okabe and Ito's set for colour-blind readers, darkened or lightened until lines and text stand out from a light and
from a dark page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tone:
    """A colour on a light and on a dark page, and the marker that goes with it."""

    light: str
    dark: str
    marker: str = "o"


INK, MUTED, RULE, PAPER = "ink", "muted", "rule", "paper"
STRATEGIES = ("dense", "masking", "compaction", "cascading", "batch_union", "specialised", "per_sample")
SPARE = ("other1", "other2", "other3")  # of strategies that this file does not know
OUTCOMES = ("faster", "unclear", "slower")
SERIES = ("series1", "series2", "series3", "series4", "series5", "series6")  # of what is no strategy
TONES = {
    INK: Tone("#1c2128", "#e8eaed"),
    MUTED: Tone("#5a6471", "#a3adb8"),
    RULE: Tone("#dfe3e8", "#343b44"),
    PAPER: Tone("#fdfdfc", "#15191e"),
    "dense": Tone("#6e7681", "#9aa4af", "s"),
    "masking": Tone("#b86e00", "#f0a840", "^"),
    "compaction": Tone("#0068a8", "#5cb6f0", "o"),
    "cascading": Tone("#00795a", "#35c79c", "D"),
    "batch_union": Tone("#7a6a00", "#d9c84a", "h"),
    "specialised": Tone("#4f46b0", "#a39bff", "X"),
    "per_sample": Tone("#a8488a", "#e08fc4", "v"),
    "other1": Tone("#b23a00", "#ff8a5c", "P"),
    "other2": Tone("#9c1f3f", "#f58aa6", "p"),
    "other3": Tone("#5b3a1e", "#c9a27e", "d"),
    "faster": Tone("#1a7f50", "#3fcf93"),
    "unclear": Tone("#8a929c", "#7d8791", "s"),
    "slower": Tone("#b8352a", "#ff8f82", "v"),
    "series1": Tone("#2b5fa8", "#7db3f5", "o"),
    "series2": Tone("#c2590a", "#f7a45c", "s"),
    "series3": Tone("#6b4fa0", "#b9a2ee", "D"),
    "series4": Tone("#00716d", "#4fc9c3", "^"),
    "series5": Tone("#a03060", "#f092b8", "v"),
    "series6": Tone("#5e6a12", "#c6d25a", "h"),
}


def tones_of(strategies: Iterable[str]) -> dict[str, str]:
    """Name of the colour of each strategy; unknown ones take the spare colours in alphabetical order."""
    unknown = sorted(set(strategies) - set(STRATEGIES))
    return {s: s for s in STRATEGIES} | {s: SPARE[i % len(SPARE)] for i, s in enumerate(unknown)}
