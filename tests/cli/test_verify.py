"""The same answer under every strategy, as an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


NETS = """
import torch
import torch.nn.functional as F
from torch import nn

from dynbench.dynamic import Exits, Skip


def items(split, seed=0):
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)).numpy(), None


class Gate(nn.Linear):
    def __init__(self):
        super().__init__(8, 1)

    def forward(self, x, carry):
        return super().forward(x).squeeze(1), carry


class Net(nn.Module):
    def __init__(self, body, gate=None):
        super().__init__()
        self.block, self.head = Skip("block", gate or Gate(), body), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.block(x)[0])


class Noisy(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5)


def noisy():
    return Net(Noisy(8, 8))


def normalised():
    return Net(nn.BatchNorm1d(8, track_running_stats=False))


def ranked():
    return Net(nn.Linear(8, 8), lambda x, carry: (x[:, 0] - x[:, 0].mean(), carry))


class OwnState(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        return self.gru(x.unsqueeze(1), torch.zeros(1, len(x), 8))[0][:, 0]


def float32():
    stages, heads = [OwnState() for _ in range(2)], [nn.Linear(8, 4) for _ in range(2)]
    return Exits("exit", stages, heads, lambda answer, state, k: answer.softmax(1).amax(1) > 0.3)


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = float32()

    def forward(self, x):
        return self.net(x) * len(x)


class Raises(nn.Linear):
    def forward(self, x):
        if len(x) not in (1, 12, 8):
            raise ValueError("no kernel for this size")
        return super().forward(x)


def raises():
    return Net(Raises(8, 8))
"""


@pytest.fixture
def workload(tmp_path: Path) -> Callable[[str], Path]:
    """A workload file for a function of `NETS`."""
    (tmp_path / "net.py").write_text(NETS, encoding="utf-8")

    def file(function: str) -> Path:
        path = tmp_path / f"{function}.toml"
        lines = ["schema = 1", f'name = "{function}"', 'title = "T"', f'model = "net.py:{function}"']
        path.write_text("\n".join([*lines, 'inputs = { name = "net.py:items" }']), encoding="utf-8")
        return path

    return file


def test_a_network_that_answers_otherwise_the_second_time_is_compared_no_further(workload: Any) -> None:
    result = call("verify", workload("noisy"))
    assert result.exit_code == 1
    (_, line) = result.stdout.splitlines()
    assert "not deterministic: Noisy 'block.body' of Skip 'block' draws random numbers" in line
    assert result.stderr == "1 network has no right answer\n"


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        ("ranked", "what Skip 'block' decides by looks over the batch; an item is given other scores"),
        ("Sized", "Sized looks at its size; an item is answered otherwise"),
    ],
)
def test_a_network_that_depends_on_the_batch_is_named_and_its_differences_are_not_called_rounding(
    workload: Any, function: str, cause: str
) -> None:
    result = call("verify", workload(function))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert f"depends on the batch: {cause}" in lines[1]
    compared = {line.split()[1]: line for line in lines[2:] if "compared in" not in line}
    assert "DIFFERENT" in compared["masking"] and " same" in compared["per_sample"]
    assert "by rounding" not in result.stdout.replace("not by rounding", "")
    assert "mismatch" in result.stderr


def test_a_body_that_normalises_over_the_batch_is_one_sentence(workload: Any) -> None:
    result = call("verify", workload("normalised"))
    assert result.exit_code in (1, 2) and "Traceback" not in result.output
    assert "block" in result.output


def test_what_cannot_be_copied_to_float64_is_compared_in_its_own_type_and_said_so(workload: Any) -> None:
    result = call("verify", workload("float32"))
    assert result.exit_code == 0
    notes = [line for line in result.stdout.splitlines() if "compared in float32: its copy in float64" in line]
    assert len(notes) == 1
    assert " same" in next(line for line in result.stdout.splitlines() if "masking" in line)


def test_a_network_that_raises_is_one_sentence(workload: Any) -> None:
    result = call("verify", workload("raises"))
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "no kernel for this size" in line


def test_by_rounding_is_said_of_differences_within_it_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def verdicts(*_: object) -> Iterator[Verdict]:
        yield Verdict("tiny", "masking", 1e-7, 1e-5, "all", unforced=0.25)
        yield Verdict("tiny", "compaction", 1e-7, 1e-5, "all", unforced=0.25, beyond_rounding=("block",))

    monkeypatch.setattr(dynbench.experiment.verify, "verify_workloads", verdicts)
    result = call("verify", TINY)
    assert result.exit_code == 1
    _, within, beyond = result.stdout.splitlines()
    assert within.endswith("same (worst: all); 25.00% of the model's own decisions differ, by rounding")
    assert "DIFFERENT" in beyond and beyond.endswith("differ, not by rounding: at 'block'")
