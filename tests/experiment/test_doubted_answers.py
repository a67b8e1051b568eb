"""A run times networks whose answers cannot be trusted or compared as well, and says so in every cell."""

from __future__ import annotations

from pathlib import Path

import pytest

import dynbench.experiment.diagnose
from dynbench.experiment import Options, load_spec
from dynbench.experiment.build import prepare
from dynbench.experiment.measure import measure_group
from dynbench.experiment.plan import planned_cells
from dynbench.store.schema import Cell
from dynbench.unavailable import Unavailable

NETS = '''
import torch
import torch.nn.functional as F
from torch import nn

from dynbench.dynamic import Exits, Skip


def items(split, seed=0):
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)).numpy(), None


def gate(x, carry):
    return x[:, 0], carry


class Net(nn.Module):
    def __init__(self, body, gate=gate):
        super().__init__()
        self.block = Skip("block", gate, body)

    def forward(self, x):
        return self.block(x)[0]


class Noisy(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5)


def noisy():
    return Net(Noisy(8, 8))


class Normalised(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def coupled():
    return Net(Normalised())


class Pooled(nn.Module):
    def forward(self, x):
        return x + F.avg_pool1d(x, 3, 1, 1)


def pooling():
    return Net(Pooled())


class OwnState(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        return self.gru(x.unsqueeze(1), torch.zeros(1, len(x), 8))[0][:, 0]


def sure(answer, state, k):
    return answer.softmax(1).amax(1) > 0.3


def float32():
    return Exits("exit", [OwnState() for _ in range(2)], [nn.Linear(8, 4) for _ in range(2)], sure)


def int8():
    return torch.ao.quantization.quantize_dynamic(Net(nn.Linear(8, 8)).eval(), {nn.Linear})


class Barred(nn.Linear):
    def forward(self, x):
        answer = super().forward(x)
        answer[:, 0], answer[:, 1] = -torch.inf, torch.nan
        return answer


def barred():
    return Exits("exit", [nn.Linear(8, 8) for _ in range(2)], [Barred(8, 4) for _ in range(2)], sure)


class Root(nn.Module):
    def forward(self, x):
        return torch.sqrt(-1 - x.abs())


def always(x, carry):
    return torch.ones(len(x)), carry


def nan():
    return Net(Root(), gate=always)


class Wrong(nn.Module):
    """Right for every batch that a check of a few items makes, and for one item; wrong for the batches of the run."""

    def __init__(self):
        super().__init__()
        self.net = Net(nn.Linear(8, 8))

    def forward(self, x):
        return self.net(x) * (2 if len(x) == 16 else 1)


def wrong():
    return Wrong()
'''


@pytest.fixture(autouse=True)
def without_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory takes a process for each arm, and is not what is looked at here."""
    nothing = Unavailable(unavailable="not asked for")
    monkeypatch.setattr(dynbench.experiment.diagnose, "cell_peak_bytes", lambda _: nothing)


def measured(folder: Path, function: str, batch_size: int = 16) -> dict[str, Cell]:
    """The cells of a group, by the key of their arm."""
    (folder / "net.py").write_text(NETS, encoding="utf-8")
    file = folder / "w.toml"
    file.write_text(
        f'schema = 1\nname = "w"\ntitle = "W"\nmodel = "net.py:{function}"\ninputs = {{ name = "net.py:items" }}\n'
        f'run = {{ batch_sizes = [{batch_size}], strategies = ["dense", "masking", "compaction", "per_sample"] }}\n',
        encoding="utf-8",
    )
    p = prepare(load_spec(str(file)), Options(time_limit_s=0.05, precision=0.9))
    (source,) = p.sources
    (folder / "run" / "samples").mkdir(parents=True)
    answer = measure_group(
        p,
        source,
        batch_size,
        planned_cells(p, source, batch_size),
        run=folder / "run",
        process=0,
        without=set(),
        tell=lambda *_, **__: None,
        stop=lambda: False,
    )
    return {cell.arm.key: cell for cell in map(Cell.model_validate, answer["cells"])}


def test_a_network_that_answers_otherwise_the_second_time_fails_in_every_way_but_its_static_twin(
    tmp_path: Path,
) -> None:
    cells = measured(tmp_path, "noisy")
    for key in ("masking", "compaction", "per_sample"):
        assert cells[key].status == "failed" and cells[key].latency is not None
        assert "not deterministic: Noisy 'block.body' of Skip 'block'" in str(cells[key].reason)
    assert cells["dense"].status == cells["baseline:dense"].status == "ok"


def test_a_network_that_looks_over_the_batch_fails_where_there_is_one(tmp_path: Path) -> None:
    cells = measured(tmp_path, "coupled")
    assert "depends on the batch: Normalised 'block.body'" in str(cells["compaction"].reason)
    assert (cells["compaction"].status, cells["per_sample"].status) == ("failed", "ok")


def test_a_wrong_answer_fails_with_its_difference(tmp_path: Path) -> None:
    cells = measured(tmp_path, "wrong")
    assert cells["masking"].status == "failed"
    assert str(cells["masking"].reason).startswith("wrong answer: differs from per_sample in float64 by ")


@pytest.mark.parametrize(("function", "type_"), [("float32", "float32"), ("int8", "int8")])
def test_what_cannot_be_compared_in_float64_is_measured_and_compared_in_its_own_type(
    function: str, type_: str, tmp_path: Path
) -> None:
    cells = measured(tmp_path, function)
    for key in ("masking", "compaction", "per_sample"):
        assert cells[key].status == "ok", cells[key].reason
        (doubt,) = [w for w in cells[key].warnings if w.id == "DB-CHECK-01"]
        assert doubt.text.startswith(f"the answers were compared in {type_}: its copy in float64 does not run")
        assert cells[key].max_error is not None
    assert not [w for w in cells["dense"].warnings if w.id == "DB-CHECK-01"]


def test_flops_of_an_operator_without_a_formula_are_unavailable_and_the_network_is_timed(tmp_path: Path) -> None:
    cell = measured(tmp_path, "int8")["compaction"]
    assert cell.status == "ok" and cell.latency is not None and cell.flops is not None
    assert isinstance(cell.flops.executed, Unavailable)
    assert "quantized.linear_dynamic" in cell.flops.executed.unavailable
    assert (cell.ideal, cell.dtype) == (None, "int8")


def test_a_network_without_products_is_timed_and_has_no_ideal(tmp_path: Path) -> None:
    cell = measured(tmp_path, "pooling")["compaction"]
    assert cell.status == "ok" and cell.speedups and cell.flops is not None
    assert (cell.flops.executed, cell.flops.required_region) == (0.0, 0.0)
    assert (cell.ideal, cell.efficiency) == (None, None)


def test_answers_of_nan_and_infinity_are_compared_as_values(tmp_path: Path) -> None:
    cell = measured(tmp_path, "barred")["compaction"]
    assert cell.status == "ok" and cell.max_error is not None and cell.tolerance is not None
    assert cell.max_error <= cell.tolerance < 1e-3
    (doubt,) = [w for w in cell.warnings if w.id.startswith("DB-CHECK")]
    assert doubt.id == "DB-CHECK-04" and "to 100% of the items hold NaN" in doubt.text


def test_a_network_that_answers_nothing_but_nan_fails_though_all_answers_are_equal(tmp_path: Path) -> None:
    cells = measured(tmp_path, "nan")
    for key in ("masking", "compaction", "per_sample"):
        assert cells[key].status == "failed" and cells[key].latency is not None
        assert "answers no number: Root 'block.body' of Skip 'block' makes NaN or inf of" in str(cells[key].reason)
