"""The same answer under every strategy, as an exit code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dynbench.experiment.verify
from dynbench.errors import UserError
from dynbench.experiment import Options, Workload, load_spec, workload_files
from dynbench.experiment.verify import Verdict
from tests.cli import TINY, call


def test_verify_prints_the_largest_difference_per_strategy() -> None:
    result = call("verify", TINY)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()[1:] if "n/a" not in line]
    assert [row[:2] for row in rows] == [["tiny", s] for s in ("masking", "compaction", "cascading", "per_sample")]
    refused = [line.split()[1] for line in result.stdout.splitlines()[1:] if "n/a" in line]
    assert refused == ["batch_union", "specialised"]  # for Weights only
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


def test_all_is_every_workload_and_one_that_cannot_be_checked_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = []

    def verdicts(specs: list[Workload], options: Options) -> Iterator[Verdict]:
        (spec,) = specs
        checked.append(spec.name)
        if spec.inputs.name == "cifar10":
            raise UserError("no images")
        yield Verdict(spec.name, "masking", largest=1e-7, tolerance=1e-5, worst_trace="all")

    monkeypatch.setattr(dynbench.experiment.verify, "verify_workloads", verdicts)
    result = call("verify", "all")
    assert checked == list(workload_files())
    assert result.exit_code == 1
    lacking = [name for name in checked if load_spec(name).inputs.name == "cifar10"]
    assert result.stdout.count("left out: no images") == len(lacking) > 1
    assert result.stderr == f"{len(lacking)} workloads could not be checked\n"
