"""The tournament, and the networks in their fastest way that follow from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dynbench import devices
from dynbench.engines import ENGINES, CannotPrepare, Form, RegionReport, forms
from dynbench.errors import UserError
from dynbench.experiment import Options, diagnose, graphs, measure, run_experiment, ways
from dynbench.experiment.alike import decided_alike, joined
from dynbench.experiment.arms import GraphCall, running_arm
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.plan import planned_cell, planned_cells
from dynbench.experiment.spec import check_options, load_spec
from dynbench.experiment.ways import Tournament
from dynbench.graph import CannotTrace
from dynbench.report.write import write_report
from dynbench.store.run import Run
from dynbench.store.schema import Arm, Cell

TINY = Path(__file__).parent / "tiny"
QUICK = Options(time_limit_s=0.3, precision=0.5, deployed=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "deployed"
    run_experiment([str(TINY / "tiny.toml")], QUICK, out, command=["dynbench", "run", "tiny.toml"])
    return Run.open(out)


def played(p: Prepared, batch_size: int, without: set[str] | None = None) -> list[Cell]:
    """The deployed cells of learned decisions."""
    (source,) = (s for s in p.sources if s.decisions.label == "learned")
    device = devices.device("cpu")
    tournament = Tournament(
        p, source, batch_size, device, without=without or set(), tell=lambda *_, **__: None, stop=lambda: False
    )
    with torch.inference_mode():
        return [c for c in tournament.fastest(planned_cells(p, source, batch_size)) if c.deployed]


class Scripted:
    """A load under which way k takes `times[k]` rounds in turn, the last of them from then on."""

    def __init__(self, times: list[list[float]]) -> None:
        self.times, self.calls = times, [0] * len(times)

    def issue(self, call: int, batches: Any, device: Any) -> list[Any]:
        mine, played = self.times[call], self.calls[call]
        self.calls[call] += 1
        ms = mine[min(played, len(mine) - 1)]
        if ms < 0:
            raise RuntimeError("out of memory")
        return [SimpleNamespace(duration_ns=round(1e6 * ms))]


def ranked(*times: list[float]) -> tuple[list[tuple[str, float | None]], list[int]]:
    """How ways "0", "1", ... are ranked that take so many milliseconds, the first time to warm up; and their rounds."""
    load = Scripted([list(t) for t in times])
    p: Any = SimpleNamespace(options=QUICK, parts=SimpleNamespace(load=load))
    tournament = Tournament(p, *[cast("Any", None)] * 3, without=set(), tell=lambda *_, **__: None, stop=lambda: False)
    entries = [
        ways.Entry(
            Arm(kind="strategy", strategy=str(k)), cast("Any", SimpleNamespace(call=k, batches=[(0, torch.zeros(1))]))
        )
        for k in range(len(times))
    ]
    tournament._heats(entries)
    tournament._final(entries)
    found = [(str(e.arm.strategy), ratio) for e, ratio in ways._ranking(entries)]
    return [(name, None if ratio is None else round(ratio, 3)) for name, ratio in found], load.calls


def test_the_final_tells_close_ways_apart() -> None:
    rounds = 1 + ways.HEATS + 2 * ways.FINAL  # short ones follow themselves
    found, calls = ranked([9, 10.0], [9, 10.4, 9.8, 10.4], [9, 20.0])
    assert found == [("0", 1.0), ("1", 1.04), ("2", 2.041)] and calls[:2] == [rounds, rounds]
    assert ranked([9, 100.0], [9, 104.0])[1] == [1 + ways.HEATS + ways.FINAL] * 2


def test_in_the_final_what_another_network_left_in_the_caches_does_not_count() -> None:
    every_second_is_cold = [9.0, *[10.0] * ways.HEATS, *[20.0, 9.0] * ways.FINAL]
    assert ranked([10.0], every_second_is_cold)[0] == [("1", 1.0), ("0", 1.111)]


def test_one_long_round_costs_nobody_the_win() -> None:
    for long in range(1, 1 + ways.HEATS + ways.FINAL):
        found, _ = ranked([10.0], [9.0] * long + [29.0] + [9.0])
        assert [name for name, _ in found] == ["1", "0"]


def test_ways_that_cannot_win_drop_out() -> None:
    found, calls = ranked([1, 10.0], [1, 41.0], [1, 16.0], [1, 14.0])
    assert calls == [1 + ways.HEATS, 2, 3, 1 + ways.HEATS]  # there is no final of one
    assert found == [("0", 1.0), ("3", 1.4), ("2", 1.6), ("1", 4.1)]


def test_a_way_without_rivals_is_timed_once() -> None:
    assert ranked([9, 10.0]) == ([("0", 1.0)], [2])
    assert ranked([9, 10.0], [9, 50.0]) == ([("0", 1.0), ("1", 5.0)], [2, 2])


def test_of_ways_that_are_as_fast_the_one_in_eager_pytorch_is_picked() -> None:
    def order(**times_ms: float) -> list[str]:
        entries = [
            ways.Entry(Arm(kind="strategy", strategy="masking", engine=name), heats_ns=[ns], final_ns=[ns] * 9)
            for name, ns in ((name, round(1e6 * ms)) for name, ms in times_ms.items())
        ]
        return [e.arm.engine for e, _ in ways._ranking(entries)]

    assert order(onnxruntime=10.0, openvino=10.05, eager=10.09) == ["eager", "onnxruntime", "openvino"]
    assert order(onnxruntime=10.0, openvino=10.05, eager=10.2) == ["onnxruntime", "openvino", "eager"]


@pytest.mark.parametrize("fails_in", [0, 2, ways.HEATS + 3])
def test_a_way_that_fails_in_any_round_is_out(fails_in: int) -> None:
    found, calls = ranked([10.0], [9.0] * fails_in + [-1.0])
    assert found == [("0", 1.0), ("1", None)] and calls[1] == fails_in + 1


@pytest.fixture
def tiny() -> Prepared:
    return prepare(load_spec(str(TINY / "tiny.toml")), QUICK)


def test_each_network_has_one_deployed_cell_at_each_batch_size(run: Run) -> None:
    deployed = [c for c in run.cells if c.deployed]
    assert {(c.batch_size, c.arm.baseline) for c in deployed} == {(b, name) for b in (1, 4) for name in (None, "plain")}
    assert len(deployed) == 4
    assert all(c.status == "ok" and not c.decisions.sweep for c in deployed)
    assert len({c.cell_id for c in run.cells}) == len(run.cells)


def test_what_lost_is_recorded_with_its_ratio_or_a_reason(run: Run) -> None:
    for cell in (c for c in run.cells if c.deployed):
        first, *others = cell.candidates
        assert first.arm == cell.arm and first.ratio == 1
        ratios = [c.ratio for c in others if c.ratio is not None]
        assert ratios == sorted(ratios) and all(ratio >= 1 for ratio in ratios)
        assert all((c.ratio is None) == bool(c.reason) for c in cell.candidates)
        ways = {(c.arm.engine, c.arm.control) for c in cell.candidates}
        assert {("eager", "host"), ("onnxruntime", "graph")} <= ways


def test_deployed_is_compared_with_deployed_and_as_written_with_as_written(run: Run) -> None:
    for cell in (c for c in run.cells if c.arm.kind == "strategy" and c.status == "ok"):
        assert [s.baseline for s in cell.deployed_speedups] == (["plain"] if cell.deployed else [])
        as_written = cell.arm.control == "host" and cell.arm.engine == "eager"
        assert [s.baseline for s in cell.speedups] == (["plain"] if as_written else [])
    for cell in (c for c in run.cells if c.primary and c.batch_size == 4):
        assert cell.speedups == [] and cell.deployed_speedups == []


def test_a_deployed_graph_gives_the_right_answer_by_the_right_work(run: Run) -> None:
    cells = {(c.arm.title, c.batch_size): c for c in run.cells if c.decisions.label == "learned"}
    for batch in (1, 4):
        graphs_of_it = [
            c for (_, b), c in cells.items() if b == batch and c.arm.control == "graph" and c.arm.kind != "control"
        ]
        for cell in graphs_of_it:
            host = cells["plain" if cell.arm.kind == "baseline" else "cascading", batch]
            assert cell.flops is not None and host.flops is not None
            assert cell.flops.executed == pytest.approx(host.flops.executed)
            if cell.arm.kind == "strategy":
                assert cell.max_error is not None and cell.tolerance is not None and cell.max_error <= cell.tolerance


def test_auto_measures_only_networks_in_their_fastest_way(tmp_path: Path) -> None:
    options = QUICK.model_copy(update={"strategies": ["auto"], "batch_sizes": [2], "decisions": ["learned"]})
    run_experiment([str(TINY / "tiny.toml")], options, tmp_path / "run", command=[])
    cells = Run.open(tmp_path / "run").cells
    assert [c.deployed for c in cells if c.arm.kind != "baseline"] == [True]
    assert any(c.deployed and c.primary for c in cells)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"strategies": ["auto"], "deployed": False}, "no --engine"),
        ({"strategies": ["auto", "masking"]}, "stands alone"),
    ],
)
def test_auto_that_cannot_be_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_options(QUICK.model_copy(update=options))


def test_a_network_that_cannot_be_a_graph_is_deployed_as_something_else(
    tiny: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise CannotTrace("Skip 'block0' cannot be a graph")

    monkeypatch.setattr(graphs, "compiled_twice", refuse)
    (dynamic,) = (c for c in played(tiny, 4) if c.arm.kind == "strategy")
    assert dynamic.arm.control == "host"
    (graph,) = (c for c in dynamic.candidates if c.arm.control == "graph")
    assert (graph.ratio, graph.reason) == (None, "Skip 'block0' cannot be a graph")


def test_a_graph_that_answers_otherwise_is_not_timed(tiny: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    other = prepare(load_spec(str(TINY / "tiny.toml")), QUICK)
    with torch.no_grad():
        other.model.exits.heads[1].bias += 1  # type: ignore[operator, union-attr]
        other.baselines["plain"][2].bias += 1  # type: ignore[index]
    made, made_static = graphs.compiled_twice, graphs.static_graph
    monkeypatch.setattr(graphs, "compiled_twice", lambda model, x, **how: made(other.model, x, **how))
    monkeypatch.setattr(graphs, "static_graph", lambda model, x, opset: made_static(other.baselines["plain"], x, opset))
    for cell in played(tiny, 4):
        (graph,) = (c for c in cell.candidates if c.arm.control == "graph")
        assert graph.ratio is None and "answers otherwise" in str(graph.reason)


def test_a_way_that_ended_the_process_is_tried_no_more_nor_others_of_its_engine(
    tiny: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "applicable", lambda model: ["plain", "folded"])
    cells = {c.arm.baseline: c for c in played(tiny, 4, {"baseline:plain, folded"})}
    reasons = {(c.arm.engine, c.arm.form): c.reason for c in cells["plain"].candidates}
    assert reasons["onnxruntime", "plain"] is None and "ended the measuring process" in str(reasons["eager", "plain"])
    assert cells["plain"].arm.control == "graph"


def test_other_decisions_than_learned_are_replayed_in_the_graph(tmp_path: Path) -> None:
    options = QUICK.model_copy(update={"batch_sizes": [4], "decisions": ["synthetic"]})
    run_experiment([str(TINY / "tiny.toml")], options, tmp_path / "run", command=[])
    (cell,) = (c for c in Run.open(tmp_path / "run").cells if c.deployed and c.arm.kind == "strategy")
    graph, in_parts = (c for c in cell.candidates if c.arm.control == "graph")
    assert {graph.arm.in_whole_batches, in_parts.arm.in_whole_batches} == {graph.arm.in_whole_batches}
    assert not graph.arm.live and graph.reason is None


@pytest.mark.parametrize("baseline", [None, "plain"])
def test_a_network_that_cannot_be_timed_in_any_way_is_a_failed_cell_with_all_reasons(
    tiny: Prepared, monkeypatch: pytest.MonkeyPatch, baseline: str | None
) -> None:
    make = ways.running_arm

    def refuse(p: Any, source: Any, cell: Cell, device: Any) -> Any:
        if cell.arm.baseline == baseline:
            raise CannotPrepare(f"no room for {cell.arm.title}")
        return make(p, source, cell, device)

    monkeypatch.setattr(ways, "running_arm", refuse)
    cells = {c.arm.baseline: c for c in played(tiny, 4)}
    assert {name: c.status for name, c in cells.items()} == {
        name: "failed" if name == baseline else "planned" for name in (None, "plain")
    }
    failed = cells[baseline]
    assert str(failed.reason).startswith("it could not be timed in any way; in the first: no room for ")
    assert all(c.ratio is None and c.reason for c in failed.candidates) and len(failed.candidates) > 2


def test_ways_that_take_too_long_to_prepare_are_named_with_the_reason(tiny: Prepared) -> None:
    for cell in played(tiny, 4):
        compiled = [c for c in cell.candidates if c.arm.engine == "compile"]
        assert compiled and all("many seconds for each region" in str(c.reason) for c in compiled)
        if cell.arm.kind == "baseline":
            (found,) = (c for c in cell.candidates if c.arm.engine == "openvino")
            assert found.reason == ENGINES["openvino"].refuses("cpu") and (found.ratio is None) == bool(found.reason)


def test_a_form_that_changes_the_answer_is_not_timed(tiny: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: Any, example: Any, run: Any) -> torch.nn.Module:
        return torch.nn.Sequential(model, torch.nn.Threshold(0.0, 1.0))

    monkeypatch.setitem(forms.FORMS, "shifted", Form(shifted, lambda x: x))
    monkeypatch.setattr(ways, "applicable", lambda model: ["plain", "shifted"])
    cells = {c.arm.baseline: c for c in played(tiny, 4)}
    (found,) = (c for c in cells["plain"].candidates if c.arm.form == "shifted")
    assert found.ratio is None and "answers otherwise than the network as written" in str(found.reason)


@pytest.mark.parametrize("gain", [0.0, 1e9])
def test_forms_of_the_dynamic_network_are_timed_where_one_might_be_the_fastest(
    tiny: Prepared, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    monkeypatch.setattr(ways, "FORM_GAIN", gain)
    monkeypatch.setattr(ways, "applicable", lambda model: ["plain", "channels_last"])
    (dynamic,) = (c for c in played(tiny, 4) if c.arm.kind == "strategy")
    (found,) = (c for c in dynamic.candidates if c.arm.form == "channels_last")
    assert found.arm.engine == "eager" and (found.ratio is not None) == (gain > 1)
    assert found.ratio is not None or "a form gains less" in str(found.reason)


def test_static_networks_are_tried_in_micro_batches_where_the_batch_is_larger(tiny: Prepared) -> None:
    found = {n: {(a.form, a.engine) for a in ways.static_ways(tiny, tiny.spec.primary, n)} for n in (8, 9, 64)}
    micro = {n: {way for way in tried if "micro" in way[0]} for n, tried in found.items()}
    assert micro == {
        8: set(),
        9: {("micro_batches_8", "eager")},
        64: {("micro_batches_8", "eager"), ("micro_batches_8", "openvino")},
    }


def test_on_a_gpu_every_network_is_tried_as_cuda_graphs(tiny: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only which ways there are: nothing is recorded here."""
    (source,) = (s for s in tiny.sources if s.decisions.label == "learned")

    def recorded() -> set[tuple[str | None, str]]:
        tried = [*ways.dynamic_ways(tiny, source), *ways.static_ways(tiny, tiny.spec.primary, 8)]
        return {(a.strategy or a.baseline, a.form) for a in tried if a.engine == "cuda_graph"}

    assert recorded() == set() and "cuda_graph" not in ways.engines_tried("cpu")
    eager = {(a.baseline, a.form) for a in ways.static_ways(tiny, tiny.spec.primary, 8) if a.engine == "eager"}
    monkeypatch.setattr(tiny, "device", torch.device("cuda"))
    found = recorded()
    assert {way for way in found if way[0] == "plain"} == eager
    assert ("cascading", "plain") in found and "cuda_graph" in ways.engines_tried("cuda:0")


def test_in_bfloat16_regions_are_tried_in_what_computes_it(tiny: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = (s for s in tiny.sources if s.decisions.label == "learned")

    def engines() -> set[str]:
        return {a.engine for a in ways.dynamic_ways(tiny, source) if a.control == "host"}

    assert engines() == {"eager", "onnxruntime", "compile"}
    monkeypatch.setattr(tiny, "dtype", torch.bfloat16)
    assert engines() == {"eager", "openvino", "compile"}
    monkeypatch.setattr(tiny, "device", torch.device("cuda"))
    assert engines() == {"eager", "onnxruntime", "compile", "cuda_graph"}


def test_why_there_is_no_graph_in_bfloat16_is_said() -> None:
    p = prepare(load_spec(str(TINY / "tiny.toml")), QUICK.model_copy(update={"dtype": "bfloat16"}))
    for cell in played(p, 4):
        (why,) = {c.reason for c in cell.candidates if c.arm.control == "graph"}
        assert why == "one graph: ONNX Runtime does not compute with torch.bfloat16 on cpu"


def sizes_tried(cell: Cell) -> set[int | None]:
    return {c.arm.micro_batch for c in cell.candidates if c.arm.control == "graph" and c.ratio is not None}


def test_graphs_are_tried_in_micro_batches_smaller_than_the_batch(
    tiny: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "FORM_GAIN", 1e9)
    assert [sizes_tried(c) for c in played(tiny, 4)] == [{None, 1}] * 2
    assert [sizes_tried(c) for c in played(tiny, 1)] == [{None}] * 2
    monkeypatch.setattr(ways, "OF_GRAPHS", (2, 3, 4))
    assert [sizes_tried(c) for c in played(tiny, 4)] == [{None, 2, 3}] * 2
    monkeypatch.setattr(ways, "left_out", lambda model, x: frozenset({"load"}))
    assert [sizes_tried(c) for c in played(tiny, 4)] == [{None}, {None, 2, 3}]
    monkeypatch.setattr(ways, "FORM_GAIN", 0.0)
    assert [sizes_tried(c) for c in played(tiny, 4)] == [{None}] * 2


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_graph_in_micro_batches_answers_decides_and_executes_the_same(tiny: Prepared, size: int, live: bool) -> None:
    (source,) = (s for s in tiny.sources if s.decisions.label == "learned")
    (arm,) = (a for a in ways.dynamic_ways(tiny, source) if a.control == "graph")
    work = []
    with torch.inference_mode():
        for form in ("plain", f"micro_batches_{size}"):
            way = arm.model_copy(update={"form": form, "live": live})
            cell = planned_cell(tiny, source, 4, way)
            running = running_arm(tiny, source, cell, devices.device("cpu"))
            answer = [torch.cat(parts) for parts in zip(*(running.call(i, x) for i, x in running.batches), strict=True)]
            facts = diagnose.Facts.of(tiny, source, 4)
            assert isinstance(running.call, GraphCall) and facts.reference.answer is not None
            assert running.call.session.graph.single == (form == "micro_batches_1")
            assert len(running.call.feeds(*running.batches[0])) == (1 if form == "plain" else -(-4 // size))
            for got, right in zip(answer, facts.reference.answer, strict=True):
                assert torch.allclose(got, right.to(got.dtype), atol=1e-5)
            if live:
                said = [running.call.decided(i, x) for i, x in running.batches]
                alike = decided_alike(joined([trace for _, trace in said]), tiny.trace(source, 4), 1e-4)
                assert len(alike) == tiny.items and bool(alike.all())
                assert torch.equal(torch.cat([answer[0] for answer, _ in said]), answer[0])
            work.append(diagnose.diagnose(tiny, source, running, facts))
    whole, parts = work
    assert whole.executed == parts.executed and parts.columns["max_error"] <= parts.columns["tolerance"]


def test_what_was_compiled_is_recorded_and_graph_breaks_are_warned_of() -> None:
    regions = [RegionReport("gate", 3, ("item()",)), RegionReport("", 1, ("item()", "print"))]
    compiled = diagnose.compiled_record(regions)
    assert (compiled.regions, compiled.compilations, compiled.most_compilations) == (2, 4, 3)
    first, second = measure.graph_breaks(compiled)
    assert "2 region(s), 'gate' first: item()" in first.text and "the whole network first: print" in second.text
    assert measure.graph_breaks(None) == []


def test_masking_is_a_graph_where_the_user_names_it_and_only_there(
    tiny: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "FORM_GAIN", 1e9)
    (source,) = (s for s in tiny.sources if s.decisions.label == "learned")
    assert [a.strategy for a in ways.dynamic_ways(tiny, source) if a.control == "graph"] == ["cascading"]
    asked = prepare(load_spec(str(TINY / "tiny.toml")), QUICK.model_copy(update={"strategies": ["masking"]}))
    (cell,) = (c for c in played(asked, 4) if c.arm.baseline is None)
    graphs = [c for c in cell.candidates if c.arm.control == "graph"]
    assert [g.arm.strategy for g in graphs] == ["masking"] * 2 and all(g.ratio is not None for g in graphs)
    (key,) = (k for k in asked.sessions if k[0] is None)  # type: ignore[index]
    masked = asked.sessions[key].graph
    assert not masked.single and not any(n.op_type == "If" for n in masked.model.graph.node)


def test_a_keep_rate_sweep_has_the_deployed_pair_where_it_is_asked_for(tmp_path: Path) -> None:
    asked = {"deployed_sweep": True, "batch_sizes": [4], "controls": "none", "strategies": ["compaction"]}
    out = tmp_path / "sweep"
    run_experiment([str(TINY / "tiny.toml")], QUICK.model_copy(update=asked), out, command=["dynbench", "run"])
    swept = [c for c in Run.open(out).cells if c.decisions.sweep and c.deployed]
    assert {c.arm.baseline for c in swept} == {None, "plain"}
    (dynamic,) = (c for c in swept if c.arm.baseline is None)
    assert dynamic.status == "ok" and not dynamic.arm.live
    assert [s.baseline for s in dynamic.deployed_speedups if s.primary] == ["plain"]
    write_report(out)
    text = (out / "report.md").read_text(encoding="utf-8")
    swept_table = text[text.index("Keep-rate sweep") :]
    assert "deployed speed-up" in swept_table
