"""From a workload file to a run directory, with real worker processes, and what happens when things go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynbench.analysis.resolution import resolution
from dynbench.errors import UserError
from dynbench.experiment import Observer, Options, run_experiment
from dynbench.experiment import manager as manager_module
from dynbench.experiment import run as run_module
from dynbench.store.run import Run
from dynbench.store.scaling import read_scaling
from dynbench.unavailable import Unavailable

TINY = Path(__file__).parent / "tiny"
QUICK = Options(threads=1, time_limit_s=0.4, precision=0.5)


class Said(Observer):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.groups: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)

    def group(self, group: Any) -> None:
        self.groups.append(group.group_id)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run_experiment([str(TINY / "tiny.toml")], QUICK, out, command=["dynbench", "run", "tiny.toml"])
    return Run.open(out)


def test_every_planned_cell_is_there_with_a_result_or_a_reason(run: Run) -> None:
    by_id = {c.cell_id: c for c in run.cells}
    names = ["dense", "masking", "compaction", "cascading", "per_sample"]
    for b in (1, 4):
        for name in (*names, "baseline:plain", "control:compaction, live decisions"):
            cell = by_id[f"tiny/learned/cpu/b{b}/float32/t1/{name}"]
            assert cell.status == ("refused" if (name, b) == ("per_sample", 4) else "ok")
    assert "measured at batch 1" in str(by_id["tiny/learned/cpu/b4/float32/t1/per_sample"].reason)
    sweep = [c for c in run.cells if c.decisions.label == "synthetic keep=0.50"]
    assert {c.arm.name for c in sweep if c.status == "ok"} == {"dense", "masking", "compaction", "cascading", "plain"}
    assert all(c.batch_size == 4 for c in sweep)
    assert run.manifest.status == "complete"


def test_executed_and_required_work_add_up(run: Run) -> None:
    cells = {(c.arm.name, c.batch_size): c for c in run.cells if c.decisions.source == "learned"}
    one = cells["per_sample", 1]
    assert one.flops is not None
    assert one.flops.executed == pytest.approx(one.flops.required_total)
    for name in ("compaction", "cascading"):
        flops = cells[name, 4].flops
        assert flops is not None and flops.executed == pytest.approx(flops.required_total)
    masking = cells["masking", 4].flops
    assert masking is not None and masking.executed > masking.required_total
    dense = cells["plain", 4].flops
    assert dense is not None and dense.executed == 2 * (8 * 16 + 16 * 4)
    assert isinstance(one.flops.accounted, Unavailable)


def test_speedups_name_their_baseline_and_ratios_follow_from_the_samples(run: Run) -> None:
    cell = next(c for c in run.cells if c.arm.key == "compaction" and c.batch_size == 4)
    (speedup,) = cell.speedups
    assert (speedup.baseline, speedup.primary) == ("plain", True)
    assert speedup.low <= speedup.value <= speedup.high
    assert cell.ideal is not None and cell.efficiency == pytest.approx(speedup.value / cell.ideal)
    samples = run.samples(cell.group_id)
    totals = samples.groupby(["arm", "round"])["duration_ns"].sum().unstack("round")
    ratio = (totals.loc["baseline:plain"] / totals.loc["compaction"]).median()
    assert speedup.value == pytest.approx(float(ratio), rel=0.05)


def test_the_primary_baseline_is_measured_twice_and_tells_how_small_a_difference_can_be_told(run: Run) -> None:
    learned = [c for c in run.cells if c.status == "ok" and c.decisions.label == "learned"]
    cell = next(c for c in learned if c.arm.key == "compaction" and c.batch_size == 4)
    assert cell.again is not None and cell.again.low <= cell.again.value <= cell.again.high
    samples = run.samples(cell.group_id)
    totals = samples.groupby(["arm", "round"])["duration_ns"].sum().unstack("round")
    again = (totals.loc["baseline:plain"] / totals.loc["baseline:plain, again"]).median()
    assert cell.again.value == pytest.approx(float(again), rel=0.05)
    (speedup,) = cell.speedups
    assert speedup.resolution == resolution(cell.again)
    assert not [c for c in run.cells if c.arm.again]  # no result of its own
    (sweep,) = {c.again for c in run.cells if c.status == "ok" and c.decisions.label != "learned"}
    assert sweep is None


def test_the_witnesses_of_a_group_are_stored_with_its_cells(run: Run) -> None:
    cells = [c for c in run.cells if c.status == "ok"]
    for cell in cells:
        assert cell.witnesses is not None and cell.witnesses.window_s > 0
        assert isinstance(cell.witnesses.control_us, float) and cell.witnesses.control_us > 0
    assert len({c.witnesses.window_s for c in cells if c.witnesses}) == len({c.group_id for c in cells})


def test_answers_were_checked_and_accuracy_is_given_for_both_sides(run: Run) -> None:
    for cell in run.cells:
        if (
            cell.arm.kind == "strategy"
            and not cell.static_twin
            and cell.status == "ok"
            and cell.decisions.source == "learned"
        ):
            assert cell.max_error is not None and cell.tolerance is not None and cell.max_error <= cell.tolerance
    found = run.manifest.workloads["tiny"].accuracies
    assert set(found) == {"dynamic", "plain"} and all(a.items == 40 for a in found.values())


def test_missing_sensors_have_a_reason(run: Run) -> None:
    cell = next(c for c in run.cells if c.status == "ok")
    assert isinstance(cell.kernel_launches, Unavailable) and cell.kernel_launches.unavailable
    assert cell.latency is not None and isinstance(cell.latency.device_stream_ms, Unavailable)


def test_a_finished_run_is_resumed_without_measuring_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said, asked = Said(), []
    ask = manager_module.Worker.ask
    monkeypatch.setattr(manager_module.Worker, "ask", lambda self, r, *a: asked.append(r["do"]) or ask(self, r, *a))
    before = run.manifest.workloads["tiny"].accuracies
    run_experiment([str(TINY / "tiny.toml")], QUICK, run.path, command=[], resume=True, observer=said)
    assert said.groups == [] and asked == ["prepare", "describe"]
    assert before and Run.open(run.path).manifest.workloads["tiny"].accuracies == before
    with pytest.raises(UserError, match="other workloads or options"):
        run_experiment(
            [str(TINY / "tiny.toml")], QUICK.model_copy(update={"seed": 1}), run.path, command=[], resume=True
        )


def test_a_run_cut_short_goes_on_where_it_stopped(run: Run, tmp_path: Path) -> None:
    class Cut(Said):
        def finished(self, group: Any, cells: Any) -> None:
            raise KeyboardInterrupt

    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run_experiment([str(TINY / "tiny.toml")], QUICK, out, command=[], observer=Cut())
    before = Run.open(out)
    assert {c.batch_size for c in before.cells if c.status == "ok"} == {1}
    said = Said()
    run_experiment([str(TINY / "tiny.toml")], QUICK, out, command=[], resume=True, observer=said)
    assert said.groups and not any("/learned/cpu/b1/" in g for g in said.groups)
    assert Run.open(out).manifest.status == "complete"
    assert [one.dynbench_version for one in Run.open(out).manifest.resumed] == [before.manifest.dynbench_version]
    assert {c.cell_id for c in Run.open(out).cells} == {c.cell_id for c in run.cells}


def test_a_run_cut_short_has_all_of_the_workloads_before(tmp_path: Path) -> None:
    class Cut(Said):
        def group(self, group: Any) -> None:
            if group.workload == "other":
                raise KeyboardInterrupt

    other = tmp_path / "other.toml"
    text = (TINY / "tiny.toml").read_text(encoding="utf-8").replace('name = "tiny"', 'name = "other"')
    other.write_text(text.replace('"net.py', f'"{TINY}/net.py'), encoding="utf-8")
    options = QUICK.model_copy(update={"scaling": True, "batch_sizes": [1, 2]})
    with pytest.raises(KeyboardInterrupt):
        run_experiment([str(TINY / "tiny.toml"), str(other)], options, tmp_path / "cut", command=[], observer=Cut())
    cut = Run.open(tmp_path / "cut")
    assert cut.manifest.workloads["tiny"].accuracies and not cut.manifest.workloads["other"].accuracies
    assert [one.workload for one in read_scaling(tmp_path / "cut")] == ["tiny"]


def test_a_process_that_holds_much_memory_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "LARGE_SHARE", 0.0)
    run_experiment([str(TINY / "tiny.toml")], QUICK, tmp_path / "run", command=[])
    found = Run.open(tmp_path / "run")
    groups = list(dict.fromkeys(c.group_id for c in found.cells if c.status == "ok"))
    assert [set(found.samples(group).process) for group in groups] == [{n} for n in range(len(groups))]
    assert found.manifest.workloads["tiny"].accuracies


def test_a_dry_run_plans_and_writes_nothing(tmp_path: Path) -> None:
    options = QUICK.model_copy(update={"strategies": ["masking", "cascading"], "decisions": ["learned"]})
    result = run_experiment([str(TINY / "tiny.toml")], options, None, command=[], dry_run=True)
    assert [g.batch_size for g in result.plan.groups] == [1, 4]
    assert result.plan.estimate_s == pytest.approx(2 * 0.4)
    assert list(tmp_path.iterdir()) == []


def workload(folder: Path, how: str) -> Path:
    (folder / "net.py").write_bytes((TINY / "net.py").read_bytes())
    text = (TINY / "tiny.toml").read_text(encoding="utf-8").replace("keep_rates = [0.5]\n", "").replace("[1, 4]", "[4]")
    text += f'\n[[baselines]]\nname = "bad"\nmodel = "net.py:dies"\nmodel_args = {{ how = "{how}" }}\n'
    file = folder / "bad.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("exit", "the measuring process died (exit code 7)"),
        ("hang", "hung: no progress for 1 s"),
        ("raise", "ValueError: no such kernel"),
        ("memory", "out of memory"),
    ],
)
def test_a_fault_costs_its_own_cell_and_the_rest_goes_on(
    how: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, patient_s = manager_module.Worker.ask, manager_module.HANG_S

    def impatient(worker: manager_module.Worker, request: Any, answer: str, on_event: Any) -> dict[str, Any]:
        """Waits long for what ends, however busy the machine is, and not for what does not."""

        def follow(event: dict[str, Any]) -> None:
            if event["event"] == "arm":
                worker._hang_s = 1.0 if event["name"] == "baseline:bad" else patient_s
            on_event(event)

        worker._hang_s = 1.0 if request["do"] == "accuracy" else patient_s
        return ask(worker, request, answer, follow)

    if how == "hang":
        monkeypatch.setattr(manager_module.Worker, "ask", impatient)
    options = QUICK.model_copy(update={"decisions": ["learned"], "strategies": ["masking"]})
    run_experiment([str(workload(tmp_path, how))], options, tmp_path / "run", command=[])
    cells = {c.arm.name: c for c in Run.open(tmp_path / "run").cells}
    assert cells["bad"].status == "failed" and reason in str(cells["bad"].reason)
    assert cells["masking"].status == "ok" and cells["plain"].status == "ok"


def test_a_model_function_that_raises_is_one_sentence(tmp_path: Path) -> None:
    file = workload(tmp_path, "none")
    file.write_text(file.read_text(encoding="utf-8").replace("net.py:make", "net.py:raises"), encoding="utf-8")
    with pytest.raises(UserError, match=r"net\.py:raises\(\) raised ValueError: depth must be odd"):
        run_experiment([str(file)], QUICK, tmp_path / "run", command=[])


@pytest.mark.usefixtures("no_gpu")
def test_cuda_where_there_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cuda"):
        run_experiment(
            [str(TINY / "tiny.toml")], QUICK.model_copy(update={"device": "cuda"}), tmp_path / "run", command=[]
        )
