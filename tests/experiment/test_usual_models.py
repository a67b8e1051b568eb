"""Networks as people build them are verified and measured, or named in one sentence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.counting.params import count_params
from dynbench.dynamic import Execution
from dynbench.dynamic.regions import find_regions
from dynbench.engines import ENGINES, CannotPrepare, prepared
from dynbench.errors import DynbenchError, UserError
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.measure import measure_group
from dynbench.experiment.plan import describe, planned_cells
from dynbench.experiment.ready import first_pass, is_unfinished, open_wrappers
from dynbench.experiment.spec import Options, Workload, parse_spec
from dynbench.experiment.verify import verify_workloads
from dynbench.meters.cost import cost
from dynbench.store.schema import Cell
from dynbench.strategies import Masking
from dynbench.unavailable import Unavailable
from tests.experiment.usual import nets

FOLDER = Path(__file__).parent / "usual"
QUICK = Options(time_limit_s=0.05, precision=0.9)
DYNAMIC = [
    "weight_norm",
    "spectral_norm",
    "closure",
    "in_first_forward",
    "lazy",
    "tied_tokens",
    "scripted",
    "traced",
    "parallel",
    "compiled",
    "compiled_in_place",
    "compiled_part",
    "compiled_stages",
    "int8",
    "packed",
]


def spec(net: str, **more: Any) -> Workload:
    inputs = "tokens" if net in ("tied_tokens", "packed", "packed_state") else "features"
    table = {
        "schema": 1,
        "name": net,
        "title": net,
        "model": f"nets.py:{net}",
        "inputs": {"name": f"nets.py:{inputs}"},
        "run": {"batch_sizes": [2], "stream_samples": 8, "strategies": ["dense", "masking", "compaction"]},
        **more,
    }
    return parse_spec(table, FOLDER / "w.toml")


def measured(p: Prepared, folder: Path) -> dict[str, Cell]:
    """The cells of the learned decisions, by arm."""
    (source,) = p.sources
    found = measure_group(
        p,
        source,
        2,
        planned_cells(p, source, 2),
        run=folder,
        process=0,
        without=set(),
        tell=lambda *_, **__: None,
        stop=lambda: False,
    )
    return {c.arm.key: c for c in map(Cell.model_validate, found["cells"])}


def masked(model: nn.Module, x: Tensor) -> Any:
    return Execution(Masking()).run(model, x)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory; memory is not looked at, which takes a process."""
    none = Unavailable(unavailable="not asked")
    monkeypatch.setattr("dynbench.experiment.diagnose.cell_peak_bytes", lambda request: none)
    (tmp_path / "samples").mkdir()
    return tmp_path


@pytest.mark.parametrize("net", DYNAMIC)
def test_it_is_verified_described_and_measured(net: str, run: Path) -> None:
    assert [v for v in verify_workloads([spec(net)], QUICK) if not v.ok] == []
    p = prepare(spec(net), QUICK)
    describe(p, None)
    cells = measured(p, run)
    assert {k: c.reason for k, c in cells.items() if c.status != "ok" and c.arm.kind != "control"} == {}
    assert not any(c.status == "failed" for c in cells.values())
    assert {"dense", "masking", "compaction", "baseline:dense"} <= cells.keys()


def test_a_packed_sequence_is_no_state_and_that_is_said() -> None:
    with pytest.raises(DynbenchError, match="a packed sequence has no row per item"):
        list(verify_workloads([spec("packed_state")], QUICK))


def test_what_is_int8_is_timed_and_its_flops_and_weights_are_not_made_up(run: Path) -> None:
    cell = measured(prepare(spec("int8"), QUICK), run)["compaction"]
    assert cell.latency is not None and cell.flops is not None
    assert isinstance(cell.flops.executed, Unavailable) and "linear_dynamic" in cell.flops.executed.unavailable
    assert cell.ideal is None
    assert cell.params == count_params(nets.exits())


@pytest.mark.parametrize("net", ["compiled", "compiled_in_place", "compiled_part", "parallel"])
def test_a_wrapper_around_decision_points_is_opened_and_that_is_said(net: str, run: Path) -> None:
    p = prepare(spec(net), QUICK)
    assert describe(p, None).notes == p.notes and len(p.notes) == 1
    assert ("DataParallel" if net == "parallel" else "torch.compile") in p.notes[0]
    assert p.trace(p.sources[0], 2).entries
    assert [v.said for v in verify_workloads([spec(net)], QUICK) if v.said is not None] == p.notes


def test_wrappers_without_decision_points_stay() -> None:
    net = nets.compiled_stages()
    opened, notes = open_wrappers(net)
    assert opened is net and notes == [] and type(net.stages[0]).__name__ == "OptimizedModule"
    both = nn.DataParallel(torch.compile(nets.exits(), backend="eager"))
    opened, notes = open_wrappers(both)
    assert opened is both.module._orig_mod and len(notes) == 2


@pytest.mark.parametrize("net", ["in_first_forward", "lazy"])
def test_what_the_first_pass_makes_is_there_before_copies_and_always_the_same(net: str) -> None:
    one, other = (prepare(spec(net), QUICK).model.state_dict() for _ in range(2))
    assert len(one) > 6 and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_first_pass_leaves_evaluation_mode_and_nobody_else_s_randomness() -> None:
    net, x = nets.in_first_forward().eval(), torch.rand(2, 8)
    before = torch.get_rng_state()
    first_pass(net, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(m.training for m in net.modules())
    copy.deepcopy(net).double()  # nothing was made in inference mode


def test_a_lazy_layer_that_cannot_be_finished_is_one_sentence() -> None:
    net = nets.lazy()
    with pytest.raises(UserError, match="the first pass over Exits raised"):
        first_pass(net, torch.rand(2, 3, 4, 5))
    assert is_unfinished(net)


def test_a_lazy_baseline_is_finished_too(run: Path) -> None:
    base = {"name": "static", "model": "nets.py:lazy_static", "primary": True}
    cells = measured(prepare(spec("lazy", baselines=[base]), QUICK), run)
    assert cells["baseline:static"].status == "ok" and cells["baseline:static"].params == 8 * 8 + 8 + 8 * 5 + 5


@pytest.mark.parametrize("net", ["weight_norm", "spectral_norm"])
def test_weights_that_are_computed_can_be_copied(net: str) -> None:
    p = prepare(spec(net), QUICK)
    copy.deepcopy(p.model)
    with torch.inference_mode():
        p.model(p.inputs)
    copied = copy.deepcopy(p.model).double()
    assert torch.allclose(copied(p.inputs.double()).float(), p.model(p.inputs), atol=1e-5)


@pytest.mark.parametrize("net", ["scripted", "traced", "compiled_stages"])
def test_a_scripted_or_compiled_module_is_one_region(net: str) -> None:
    x = torch.rand(2, 8)
    with torch.inference_mode():
        regions = find_regions(getattr(nets, net)().eval(), lambda m: masked(m, x))
    assert [r.name for r in regions if "stages" in r.name] == ["stages.0", "stages.1", "stages.2"]


@pytest.mark.parametrize("net", ["scripted", "traced"])
def test_an_engine_that_cannot_look_into_a_scripted_module_says_so(net: str) -> None:
    p = prepare(spec(net), QUICK)
    with torch.inference_mode(), pytest.raises(CannotPrepare, match=r"region 'stages\.0' cannot become an ONNX graph"):
        prepared(p.model, ENGINES["onnxruntime"], lambda m: masked(m, p.inputs[:4]))


@pytest.mark.parametrize("net", ["weight_norm", "packed"])
def test_engines_prepare_it_and_answer_the_same(net: str) -> None:
    p = prepare(spec(net), QUICK)
    with torch.inference_mode():
        own = prepared(p.model, ENGINES["onnxruntime"], lambda m: masked(m, p.inputs[:4]))
        assert torch.allclose(masked(own, p.inputs), masked(p.model, p.inputs), atol=1e-5)


def test_a_whole_scripted_network_has_no_decisions_and_is_measured(run: Path) -> None:
    p = prepare(spec("whole_script"), QUICK)
    assert describe(p, None).points == {}
    assert {c.status for c in measured(p, run).values()} == {"ok"}


def test_what_a_lazy_network_costs_is_counted_with_real_weights() -> None:
    net = nets.lazy()
    found = cost(net, torch.rand(2, 8))
    assert found["macs"] == 3 * 8 * 8 + 8 * 5
    assert found["params"] == count_params(net) == 3 * (8 * 8 + 8 + 2 * 8) + 3 * (8 * 5 + 5)
    assert not is_unfinished(net) and type(next(net.parameters()).detach()) is Tensor
