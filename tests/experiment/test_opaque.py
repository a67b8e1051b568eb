"""A network with control flow of its own stands beside ours: timed, counted, compared, and called what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynbench.analysis.headline import alternatives, contest
from dynbench.analysis.verdict import paragraphs, verdict
from dynbench.errors import UserError
from dynbench.experiment.accuracy import accuracies
from dynbench.experiment.arms import runnable
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.measure import measure_group
from dynbench.experiment.plan import describe, groups, planned_cells
from dynbench.experiment.spec import Options, Workload, parse_spec
from dynbench.store.schema import Cell
from dynbench.unavailable import Unavailable

FOLDER = Path(__file__).parent / "opaque"
QUICK = Options(time_limit_s=0.05, precision=0.9)
STATIC = {"name": "static", "model": "nets.py:static", "primary": True}
AUTHORS = {"name": "authors", "model": "nets.py:own_if", "same_answer_as": "dynamic"}


def spec(model: str = "nets.py:ours", *, run: dict[str, Any] | None = None, **more: Any) -> Workload:
    table = {
        "schema": 1,
        "name": "beside",
        "title": "A network",
        "model": model,
        "inputs": {"name": "nets.py:features"},
        "baselines": [STATIC],
        "run": {"batch_sizes": [4], "stream_samples": 8, "strategies": ["masking", "compaction"], **(run or {})},
        **more,
    }
    return parse_spec(table, FOLDER / "w.toml")


def measured(p: Prepared, folder: Path, label: str = "learned") -> dict[str, Cell]:
    (folder / "samples").mkdir(exist_ok=True)
    source = next(s for s in p.sources if s.decisions.label == label)
    size = max(p.batch_sizes)
    found = measure_group(
        p,
        source,
        size,
        planned_cells(p, source, size),
        run=folder,
        process=0,
        without=set(),
        tell=lambda *_, **__: None,
        stop=lambda: False,
    )
    return {c.arm.key: c for c in map(Cell.model_validate, found["cells"])}


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Unavailable(unavailable="not asked")
    monkeypatch.setattr("dynbench.experiment.diagnose.cell_peak_bytes", lambda request: none)


def test_own_ifs_are_timed_counted_and_compared_in_the_same_rounds(tmp_path: Path) -> None:
    p = prepare(spec(opaque=[AUTHORS]), QUICK)
    cells = measured(p, tmp_path)
    authors, masking, compaction = cells["opaque:authors"], cells["masking"], cells["compaction"]
    assert authors.status == "ok" and authors.rounds == masking.rounds and authors.latency is not None
    assert authors.flops is not None and compaction.flops is not None
    assert authors.flops.executed == pytest.approx(compaction.flops.required_region)  # its decisions are the same
    assert isinstance(authors.flops.required_region, Unavailable) and authors.ideal is None
    assert authors.max_error is not None and authors.max_error <= 1e-6
    assert [s.baseline for s in authors.speedups] == ["static"] and authors.speedups[0].primary
    assert {s.baseline for s in masking.speedups} == {"static", "authors"}
    assert authors.params == masking.params


def test_the_verdict_names_it_apart_from_static_networks(tmp_path: Path) -> None:
    p = prepare(spec(opaque=[AUTHORS]), QUICK)
    info, cells = describe(p, None), list(measured(p, tmp_path).values())
    assert info.opaque == ["authors"]
    text = verdict(info, cells, "this CPU")
    assert "Against authors, code with control flow of its own, " in text and "at batch 4" in text
    found = contest(info.name, cells)
    assert found is not None
    accurate = {n: a.model_copy(update={"value": 1.0}) for n, a in accuracies(p).items()}
    assert accurate.keys() == {"dynamic", "static", "authors"}
    known = alternatives(info.model_copy(update={"accuracies": accurate}), found)
    assert all(a.name != "authors" for at in known.values() for a in at)


def test_other_answers_are_a_failed_cell_with_the_reason(tmp_path: Path) -> None:
    wrong = {**AUTHORS, "name": "wrong", "model_args": {"wrong": True}}
    narrow = {**AUTHORS, "name": "narrow", "model": "nets.py:narrow"}
    free = {"name": "free", "model": "nets.py:narrow"}
    raising = {"name": "raising", "model": "nets.py:raises"}
    p = prepare(spec(opaque=[wrong, narrow, free, raising]), QUICK)
    cells = measured(p, tmp_path)
    assert "wrong answer: differs from the dynamic network" in str(cells["opaque:wrong"].reason)
    assert cells["opaque:narrow"].reason == "answers [(8, 3)], the dynamic network answers [(8, 8)]"
    assert cells["opaque:free"].status == "ok" and cells["opaque:free"].max_error is None
    assert cells["opaque:raising"].status == "failed"
    assert {cells[k].status for k in ("masking", "compaction", "baseline:static")} == {"ok"}
    text = verdict(describe(p, None), list(cells.values()), "this CPU")
    assert "Beside it wrong failed (wrong answer" in text


def test_beside_made_up_decisions_it_is_refused_and_in_a_sweep_it_is_not_there() -> None:
    p = prepare(spec(opaque=[AUTHORS], run={"decisions": ["synthetic"], "keep_rates": [0.5]}), QUICK)
    asked, sweep = groups(p)
    (cell,) = [c for c in asked["cells"] if c["arm"]["kind"] == "opaque"]
    assert cell["status"] == "refused" and "decides for itself" in cell["reason"]
    assert not [c for c in sweep["cells"] if c["arm"]["kind"] == "opaque"]


def test_a_workload_whose_own_model_is_opaque(tmp_path: Path) -> None:
    own = spec("nets.py:own_if", model_kind="opaque", run={"strategies": None})
    p = prepare(own, QUICK)
    cells = measured(p, tmp_path)
    assert set(cells) == {"opaque:own_if", "baseline:static"}
    assert {c.status for c in cells.values()} == {"ok"}
    dense = cells["baseline:static"].flops
    saved = cells["opaque:own_if"].flops
    assert dense is not None and saved is not None and saved.executed < dense.executed  # type: ignore[operator]
    text = " ".join(paragraphs(describe(p, None), list(cells.values()), "this CPU"))
    assert "decides by control flow of its own" in text and "against static, own_if gives" in text
    assert accuracies(p).keys() == {"dynamic", "static", "own_if"}


def test_it_is_built_from_its_description_alone(tmp_path: Path) -> None:
    p = prepare(spec(opaque=[AUTHORS]), QUICK)
    arm = next(c.arm for c in planned_cells(p, p.sources[0], 4) if c.arm.kind == "opaque")
    call = runnable(p.spec, p.options, arm, p.inputs[:4], None, p.items)
    assert type(call.network).__name__ == "OwnIf"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"opaque": [{**AUTHORS, "name": "static"}]}, "two networks are named 'static'"),
        ({"opaque": [{**AUTHORS, "same_answer_as": "static"}]}, "same_answer_as"),
        ({"model_kind": "opaque", "baselines": []}, r"no static twin.*primary = true"),
        ({"model_kind": "opaque"}, "decides for itself"),
        ({"model_kind": "closed"}, "model_kind"),
        (
            {"model_kind": "opaque", "run": {"strategies": None}, "opaque": [AUTHORS]},
            "needs a model with decision points",
        ),
    ],
)
def test_a_workload_that_makes_no_sense_is_one_sentence(more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        spec(**more)
    assert "\n" not in str(refused.value)


def test_a_network_with_decision_points_is_not_opaque() -> None:
    with pytest.raises(UserError, match=r"nets\.py:ours has decision points \('s0', \.\.\.\)"):
        prepare(spec(opaque=[{"name": "other", "model": "nets.py:ours"}]), QUICK)


def test_strategies_asked_for_mean_nothing_for_an_opaque_model() -> None:
    own = spec("nets.py:own_if", model_kind="opaque", run={"strategies": None})
    with pytest.raises(UserError, match="leave out --strategy"):
        prepare(own, QUICK.model_copy(update={"strategies": ["masking"]}))


def test_skipnet_as_published_beside_ours_answers_the_same_and_executes_everything(tmp_path: Path) -> None:
    """The authors' masked form returns its masks beside the answer; only the answer is compared."""
    both = spec(
        "nets.py:our_skipnet",
        inputs={"name": "nets.py:images"},
        baselines=[{"name": "resnet", "model": "nets.py:our_resnet", "primary": True}],
        opaque=[{"name": "authors", "model": "nets.py:authors", "same_answer_as": "dynamic"}],
    )
    cells = measured(prepare(both, QUICK), tmp_path)
    authors, masking = cells["opaque:authors"], cells["masking"]
    assert authors.status == "ok", authors.reason
    assert authors.flops is not None and masking.flops is not None
    assert authors.flops.executed == pytest.approx(masking.flops.executed, rel=0.05)
    speedup = next(s for s in masking.speedups if s.baseline == "authors")
    assert speedup.low <= speedup.value <= speedup.high
