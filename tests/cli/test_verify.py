"""The same answer under every strategy, as an exit code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dynbench.experiment.verify
from dynbench.experiment.verify import Verdict
from tests.cli import TINY, call


def test_verify_prints_the_largest_difference_per_strategy() -> None:
    result = call("verify", TINY)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["tiny", s] for s in ("masking", "compaction", "cascading", "per_sample")]
    assert all(float(row[2]) <= float(row[3]) for row in rows)


def test_a_mismatch_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def verdicts(*_: object) -> Iterator[Verdict]:
        yield Verdict("tiny", "masking", largest=1e-7, tolerance=1e-5, worst_trace="all")
        yield Verdict("tiny", "compaction", largest=0.1, tolerance=1e-5, worst_trace="none")
        yield Verdict("tiny", "cascading", refused="there is no loop")

    monkeypatch.setattr(dynbench.experiment.verify, "verify_workloads", verdicts)
    result = call("verify", TINY)
    assert result.exit_code == 1
    _, same, different, refused = result.stdout.splitlines()
    assert "same" in same
    assert "DIFFERENT (worst: none)" in different
    assert "n/a" in refused and "there is no loop" in refused
    assert result.stderr == "1 mismatch\n"
