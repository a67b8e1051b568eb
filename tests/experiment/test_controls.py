"""Controls in a run: planned, interleaved, refused with a reason, and stored as a waterfall; by the real command."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import dynbench.experiment.measure
from dynbench.analysis.statistics import median_interval, ratio_of_totals
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.explain import is_control, leaves_out_bodies
from dynbench.experiment.measure import measure_group
from dynbench.experiment.plan import controls_of, planned_cell, planned_cells
from dynbench.experiment.spec import Options, load_spec
from dynbench.meters.energy import measure_energy
from dynbench.store.run import Run
from dynbench.store.schema import Arm, Candidate, Cell
from dynbench.unavailable import Unavailable
from tests.cli import call

TINY = Path(__file__).parent / "tiny" / "tiny.toml"
PARTS = ("everything", "deciding", "waiting", "moving")


def prepared(**options: object) -> Prepared:
    return prepare(load_spec(str(TINY)), Options.model_validate(options))


def controls(p: Prepared, batch_size: int, *, sweep: bool = False) -> list[Cell]:
    source = next(s for s in p.sources if s.sweep == sweep)
    return [c for c in planned_cells(p, source, batch_size) if c.arm.without is not None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """By the command: as written and deployed, at one batch size."""
    out = tmp_path_factory.mktemp("controls") / "run"
    asked = ("--batch", "4", "--decisions", "learned", "--controls", "all", "--time-limit", "0.5", "--precision", "50")
    result = call("run", TINY, *asked, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    return Run.open(out)


def test_by_default_the_preferred_strategy_has_controls_at_the_largest_batch_size() -> None:
    p = prepared(controls="default")
    assert [(c.arm.strategy, c.arm.without) for c in controls(p, 4)] == [("cascading", part) for part in PARTS[:3]]
    assert controls(p, 1) == [] and controls(p, 4, sweep=True) == []
    assert controls(prepared(controls="none"), 4) == []


def test_all_are_those_of_every_strategy_and_what_means_nothing_is_refused() -> None:
    found = {(c.arm.strategy, c.arm.without): c for c in controls(prepared(controls="all"), 1)}
    assert {key for key, c in found.items() if c.status == "planned"} == {
        *((strategy, part) for strategy in ("cascading", "compaction") for part in PARTS),
        *(("masking", part) for part in PARTS if part != "waiting"),
    }
    assert not [key for key, c in found.items() if c.status == "refused"]


def test_of_a_graph_only_what_decides_can_be_left_out() -> None:
    graph = Arm(kind="strategy", strategy="cascading", engine="onnxruntime", control="graph", live=True)
    (control,) = controls_of(prepared(controls="all"), graph)
    assert (control.without, control.live, control.kind) == ("deciding", False, "control")
    assert control.key == "control:cascading, decisions known ahead, onnxruntime, graph"


def test_controls_run_in_the_rounds_of_their_arm(run: Run) -> None:
    mine = [c for c in run.cells if c.arm.without is not None and c.status == "ok"]
    assert {c.arm.without for c in mine if c.arm.control == "host"} == set(PARTS)
    samples = run.samples(mine[0].group_id)
    rounds = samples.groupby("arm", observed=True)["round"].nunique()
    arms = [
        c.arm for c in run.cells if c.group_id == mine[0].group_id and c.status == "ok" and c.arm.kind == "strategy"
    ]
    for control in (c.arm for c in mine):
        assert rounds[control.key] in [rounds[a.key] for a in arms if is_control(control, a)], control.key


def test_deployed_networks_get_rounds_of_their_own(run: Run) -> None:
    cells = [c for c in run.cells if c.batch_size == 4 and c.status == "ok" and c.arm.without is None]
    deployed = {c.rounds for c in cells if c.deployed}
    (rounds,) = deployed
    assert rounds >= max(c.rounds for c in cells if not c.deployed) >= 3
    both = next(c for c in cells if c.deployed and not c.primary)
    (speedup,) = (s for s in both.deployed_speedups if s.primary)
    totals = run.samples(both.group_id).groupby(["arm", "round"], observed=True)["duration_ns"].sum()
    base = next(c for c in cells if c.deployed and c.primary)
    ratios = ratio_of_totals(totals[base.arm.key].to_numpy(), totals[both.arm.key].to_numpy())
    assert len(ratios) == rounds and speedup.value == pytest.approx(median_interval(ratios).value)


def test_what_a_control_executes_is_what_is_left_in(run: Run) -> None:
    by_part = {c.arm.without: c.flops for c in run.cells if c.arm.strategy == "cascading" and c.arm.control == "host"}
    whole, bare, known, waiting = (by_part[part] for part in (None, "everything", "deciding", "waiting"))
    assert whole is not None and bare is not None and known is not None and waiting is not None
    assert isinstance(bare.executed, float) and isinstance(whole.executed, float)
    assert waiting.executed == whole.executed > bare.executed == known.executed


def test_a_cell_says_where_its_saving_went(run: Run) -> None:
    cell = next(c for c in run.cells if c.arm.key == "cascading" and c.batch_size == 4)
    assert cell.waterfall is not None and cell.flops is not None and isinstance(cell.flops.dense, float)
    assert [f.name for f in cell.waterfall.factors] == [
        "surplus", "fewer_items", "moving", "deciding", "waiting", "rest",
    ]  # fmt: skip
    product = math.prod(f.value for f in cell.waterfall.factors)
    (speedup,) = cell.speedups
    assert product == pytest.approx(cell.waterfall.ideal / speedup.value)
    assert cell.waterfall.ideal == pytest.approx(cell.ideal)
    assert all(f.low <= f.value <= f.high for f in cell.waterfall.factors)


def test_what_is_deployed_is_explained_as_well(run: Run) -> None:
    (cell,) = [c for c in run.cells if c.deployed and c.arm.kind == "strategy"]
    assert cell.deployed_waterfall is not None
    (speedup,) = (s for s in cell.deployed_speedups if s.primary)
    assert cell.deployed_waterfall.speedup == pytest.approx(speedup.value)


def test_a_baseline_that_is_fastest_elsewhere_is_measured_in_the_engine_of_the_network_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = prepared(decisions=["learned"], time_limit_s=0.3, precision=0.9, deployed=True)
    (source,) = p.sources
    way = {"engine": "onnxruntime", "control": "graph"}
    graph = Arm.model_validate({"kind": "strategy", "strategy": "cascading", "live": True, **way})
    static = Arm.model_validate({"kind": "baseline", "baseline": p.spec.primary.name, **way})

    class Decided:
        """A tournament that eager PyTorch won with the static network, ONNX Runtime with the dynamic one."""

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def fastest(self, cells: list[Cell]) -> list[Cell]:
            primary = next(i for i, c in enumerate(cells) if c.primary)
            candidates = [Candidate(arm=cells[primary].arm, ratio=1.0), Candidate(arm=static, ratio=1.3)]
            won = {"deployed": True, "candidates": candidates}
            cells[primary] = cells[primary].model_copy(update=won)
            return [*cells, planned_cell(p, source, 4, graph).model_copy(update={"deployed": True})]

    monkeypatch.setattr(dynbench.experiment.measure, "Tournament", Decided)
    (tmp_path / "samples").mkdir()
    found = measure_group(
        p,
        source,
        4,
        planned_cells(p, source, 4),
        run=tmp_path,
        process=0,
        without=set(),
        tell=lambda *_, **__: None,
        stop=lambda: False,
    )
    cells = {c.arm.key: c for c in map(Cell.model_validate, found["cells"])}
    control = cells[f"control:{static.title}"]
    assert control.status == "ok" and control.arm.only_explains and control.flops is not None
    assert not control.speedups and not control.deployed_speedups and control.ideal is None
    dynamic, primary = cells[graph.key], cells[f"baseline:{static.name}"]
    assert dynamic.deployed_waterfall is not None
    factors = {f.name: f.value for f in dynamic.deployed_waterfall.factors}
    assert list(factors)[-2:] == ["engine", "rest"]
    samples = pd.read_parquet(tmp_path / "samples" / found["samples"])
    totals = samples.groupby(["arm", "round"], observed=True)["duration_ns"].sum()
    ratios = ratio_of_totals(totals[control.arm.key].to_numpy(), totals[primary.arm.key].to_numpy())
    assert factors["engine"] == pytest.approx(median_interval(ratios).value)
    (speedup,) = (s for s in dynamic.deployed_speedups if s.primary)
    assert math.prod(factors.values()) == pytest.approx(dynamic.deployed_waterfall.ideal / speedup.value)


def test_a_control_is_no_result_by_itself(run: Run) -> None:
    for cell in (c for c in run.cells if c.arm.without is not None):
        assert not cell.speedups and cell.ideal is None and cell.max_error is None and cell.memory is None


def test_the_report_shows_where_the_saving_goes(run: Run) -> None:
    page = (run.path / "report.md").read_text(encoding="utf-8")
    assert "Where the saving goes, by controls" in page
    assert "dense at the active count over" in page and "Of an ideal of" in page
    speed = page[page.index("## Speed") : page.index("Where the saving goes, by controls", page.index("## Speed"))]
    assert "nothing moved" not in speed
    assert list((run.path / "figures").glob("*waterfall*"))


class Counter:
    """A made-up counter: 10 W as long as this process computes, whatever else runs on the machine."""

    name, update_s = "made-up counter", 1e-4

    def read_j(self) -> float:
        return 10.0 * time.process_time()


def test_where_there_is_a_counter_a_cell_says_where_its_joules_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynbench.devices.cpu.Cpu.energy_sensor", lambda self: Counter())
    monkeypatch.setattr("dynbench.devices.cpu.Cpu.clock_ns", lambda self: time.process_time_ns())
    monkeypatch.setattr("dynbench.experiment.build.idle_power_w", lambda device: 1.0)
    short = partial(measure_energy, window_s=0.02)
    monkeypatch.setattr("dynbench.experiment.diagnose.measure_energy", short)
    none = Unavailable(unavailable="not asked")
    monkeypatch.setattr("dynbench.experiment.diagnose.cell_peak_bytes", lambda request: none)
    p = prepared(controls="default", time_limit_s=0.2)
    source = next(s for s in p.sources if not s.sweep)
    (tmp_path / "samples").mkdir()
    quiet = {"tell": lambda *_, **__: None, "stop": lambda: False}
    planned = planned_cells(p, source, 4)
    found = measure_group(p, source, 4, planned, run=tmp_path, process=0, without=set(), **quiet)
    cells = {c.arm.key: c for c in map(Cell.model_validate, found["cells"])}
    cell = cells["cascading"]
    assert cell.waterfall is not None and cell.energy_waterfall is not None and cell.energy is not None
    assert [f.name for f in cell.energy_waterfall.factors] == [f.name for f in cell.waterfall.factors]
    base = next(c for c in cells.values() if c.primary and c.energy is not None)
    assert base.energy is not None and isinstance(base.energy.item_j, float)
    ours, theirs = cell.energy.parts_j, base.energy.parts_j
    of_parts = [
        median_interval(ratio_of_totals(theirs[:k], ours[:k])).value for k in range(2, min(len(ours), len(theirs)) + 1)
    ]
    assert any(cell.energy_waterfall.speedup == pytest.approx(value) for value in of_parts)
    assert cells["masking"].energy_waterfall is None  # without controls


def test_an_arm_that_leaves_out_bodies_is_no_control() -> None:
    assert leaves_out_bodies(54.6e6, 72.5e6)
    assert not leaves_out_bodies(72.5e6, 72.5e6) and not leaves_out_bodies(80e6, 72.5e6)
    unknown = Unavailable(unavailable="an operator has no formula")
    assert not leaves_out_bodies(unknown, 72.5e6) and not leaves_out_bodies(72.5e6, unknown)
