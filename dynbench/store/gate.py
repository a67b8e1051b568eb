"""What a check found."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dynbench.store.schema import Arm, Interval, Record, Warning_

VERSION = 1
Outcome = Literal["FASTER", "SLOWER", "SAME", "AMBIGUOUS"]


class ExactChange(Record):
    """A quantity that does not depend on the clock and differs between the revisions."""

    what: str
    base: float | str
    head: float | str
    regression: bool  # more work, or another answer
    text: str


class CellCheck(Record):
    """One cell: what the clock says, and what does not depend on it."""

    name: str  # 'compaction, batch 32', rendered from the two below
    arm: Arm | None = None  # None: recorded before a cell had a typed identity
    batch_size: int | None = None
    outcome: Outcome
    reason: str
    change: Interval  # head time / base time
    again: Interval  # base time / base time, another process: its truth is 1
    resolution: float
    confirmed: bool  # by a fresh set of processes; only of FASTER and SLOWER
    base_ms: float  # median time of the stream
    head_ms: float
    laps: int  # how often the stream was timed in every revision
    processes: int  # sets of processes
    exact: list[ExactChange] = Field(default_factory=list)


class Gate(Record):
    """A check's outcome."""

    version: int = VERSION
    workload: str
    title: str
    base: str  # what was compared with: a revision, or a baseline file
    head: str
    commit: str | None = None  # of the head, in full; None: it is in no repository
    dirty: bool = False  # there were changes that were not committed
    machine: str
    device: str
    threads: int
    started: str
    seconds: float
    matters: float  # smallest change of time that matters, as a share
    cells: list[CellCheck]
    warnings: list[Warning_] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)  # what else is to be known, such as what the base took from the head

    @property
    def exit_code(self) -> int:
        """0: no regression; 1: a confirmed one; 3: this machine could not tell."""
        if any(c.outcome == "SLOWER" or any(e.regression for e in c.exact) for c in self.cells):
            return 1
        return 3 if any(c.outcome == "AMBIGUOUS" for c in self.cells) else 0

    @property
    def sentence(self) -> str:
        """The outcome in a sentence."""
        slower = [c.name for c in self.cells if c.outcome == "SLOWER"]
        other = [e.text for c in self.cells for e in c.exact if e.regression]
        if slower or other:
            said = [f"slower: {', '.join(slower)}"] if slower else []
            return f"Regression: {'; '.join([*said, *dict.fromkeys(other)])}."
        if unclear := [c.name for c in self.cells if c.outcome == "AMBIGUOUS"]:
            return f"Could not tell: {', '.join(unclear)}."
        faster = [c.name for c in self.cells if c.outcome == "FASTER"]
        return f"No regression{'; faster: ' + ', '.join(faster) if faster else ''}."
