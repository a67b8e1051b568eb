"""Two runs: what is the same cell, what may not be compared, and whether code or machine changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynbench.analysis.compare import compare, exact_quantities
from dynbench.errors import UserError
from dynbench.store.run import Run, RunWriter
from dynbench.store.schema import Interval, Manifest, RoundSample, Speedup
from dynbench.unavailable import Unavailable
from tests.analysis.cells import NO, RESNET, baseline, cell, info, latency
from tests.analysis.cells import flops as flops_of
from tests.cli import call
from tests.store.records import store_samples

ROUNDS = 40


def make(
    path: Path,
    *,
    ours_ms: float = 8.0,
    base_ms: float = 10.0,
    control_us: float | None = 400.0,
    seed: int = 0,
    noise: float = 0.005,
    manifest: dict[str, Any] | None = None,
    engine: str = "eager",
    **flops: float,
) -> Run:
    """A run with one strategy and its baseline, as if timed."""
    draw = np.random.default_rng(seed)
    ours, base = (t * np.exp(draw.normal(0, noise, ROUNDS)) for t in (ours_ms, base_ms))
    about = {
        "dynbench_version": "0",
        "run_id": path.name,
        "command": [],
        "spec": {},
        "started": "2026-01-01T00:00:00+00:00",
        "seed": 0,
        "hardware": {"name": "a CPU"},
        "software": {"python": "3.11.1", "torch": "2.13.0"},
        "git": {},
        "environment": {"threads": 1},
        "workloads": {"skipnet38": info().model_dump()},
    }
    writer = RunWriter.create(path, Manifest.model_validate(about | (manifest or {})))
    seen = {
        "window_s": 1.0,
        "waited": 0.0,
        "stolen": 0.0,
        "switched_per_s": 0.0,
        "control_us": NO if control_us is None else control_us,
        "control_drift": 0.0,
        "clock_mhz": NO,
        "clock_drift": NO,
        "temperature_c": NO,
        "governor": "performance",
    }
    again = Interval(value=1, low=0.995, high=1.005)
    ratio = base_ms / ours_ms
    against = Speedup(
        value=ratio, low=ratio / 1.005, high=ratio * 1.005, baseline=RESNET, primary=True, resolution=0.01
    )
    work = flops_of(**flops)
    common: dict[str, Any] = {"witnesses": seen, "again": again, "engine": engine}
    mine = cell("compaction", None, latency=latency(ours_ms), flops=work, speedups=[against], **common)
    theirs = baseline(latency=latency(base_ms), **common)
    for one in (mine, theirs):
        writer.append_cell(one)
    rows = [
        RoundSample(process=0, round=r, position=0, arm=arm.key, batch_id=0, start_ns=r, duration_ns=int(t * 1e6))
        for arm, times in ((mine.arm, ours), (theirs.arm, base))
        for r, t in enumerate(times)
    ]
    store_samples(path, mine.group_id, rows)
    return Run.open(path)


def outcomes(a: Run, b: Run, **options: Any) -> dict[str, str]:
    return {c.cell.arm.name: c.judged.outcome for c in compare(a, b, **options)[0]}


def test_the_same_code_on_the_same_machine_is_the_same(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", seed=1)
    assert outcomes(a, b) == {"compaction": "SAME", RESNET: "SAME"}


def test_code_that_became_slower_is_told_from_its_baseline(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", ours_ms=8.8, seed=1)
    changes = {c.cell.arm.name: c for c in compare(a, b)[0]}
    assert changes["compaction"].judged.outcome == "SLOWER" and changes[RESNET].judged.outcome == "SAME"
    assert changes["compaction"].time.value == pytest.approx(1.1, rel=0.01)
    assert changes["compaction"].against_baseline is not None
    assert changes["compaction"].against_baseline.value == pytest.approx(1.1, rel=0.01)
    assert outcomes(b, a)["compaction"] == "FASTER"


def test_a_machine_that_became_slower_is_no_change_of_code(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", ours_ms=12.0, base_ms=15.0, control_us=600.0, seed=1)
    change = compare(a, b)[0][0]
    assert change.time.value == pytest.approx(1.5, rel=0.01) and change.machine == pytest.approx(1.5)
    assert outcomes(a, b) == {"compaction": "SAME", RESNET: "SAME"}


def test_a_change_that_the_baseline_shares_is_not_blamed_on_the_code(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", ours_ms=9.6, base_ms=12.0, seed=1)  # the kernel saw nothing
    found = {c.cell.arm.name: c.judged for c in compare(a, b)[0]}
    assert found["compaction"].outcome == "AMBIGUOUS" and "does not see" in found["compaction"].reason


def test_without_a_control_kernel_nothing_is_blamed(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", control_us=None), make(tmp_path / "b", ours_ms=9.6, seed=1)
    (found, _) = (c.judged for c in compare(a, b)[0])
    assert found.outcome == "AMBIGUOUS" and "no control kernel" in found.reason


@pytest.mark.parametrize(
    ("key", "manifest"),
    [
        ("machine", {"hardware": {"name": "another CPU"}}),
        ("threads", {"environment": {"threads": 4}}),
        ("software", {"software": {"python": "3.11.1", "torch": "2.12.0"}}),
        ("inputs", {"workloads": {"skipnet38": info(stream_hash="other").model_dump()}}),
        ("weights", {"workloads": {"skipnet38": info(weights_sha256="f" * 64).model_dump()}}),
        ("decisions", {"workloads": {"skipnet38": info(trace_hashes={"learned": "x"}).model_dump()}}),
    ],
)
def test_what_is_not_comparable_is_refused_unless_allowed(tmp_path: Path, key: str, manifest: dict[str, Any]) -> None:
    traces = {"workloads": {"skipnet38": info(trace_hashes={"learned": "w"}).model_dump()}}
    a = make(tmp_path / "a", manifest=traces if key == "decisions" else None)
    b = make(tmp_path / "b", seed=1, manifest=manifest)
    with pytest.raises(UserError, match=f"not comparable: {key}.*--allow {key}"):
        compare(a, b)
    _, _, unlike, _ = compare(a, b, allow=[key])
    assert len(unlike) == 1 and unlike[0].startswith(key)


def test_counted_work_that_changed_is_named_exactly(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", seed=1, executed=70.0)
    assert compare(a, b)[0][0].exact == ["executed FLOPs per item: 60 -> 70"]
    assert isinstance(NO, Unavailable) and not compare(a, a)[0][0].exact


def test_runs_without_a_cell_in_common_are_refused(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    (b.path / "cells.jsonl").write_text("")
    with pytest.raises(UserError, match="no measured cell in common"):
        compare(a, Run.open(b.path))


def test_cells_are_matched_by_group_and_arm(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", engine="compile")
    with pytest.raises(UserError, match="no measured cell in common"):
        compare(a, b)
    eager = Run.open(a.path)
    eager.cells.extend(b.cells)
    found = compare(eager, b)
    assert [c.cell.arm.engine for c in found.changes] == ["compile", "compile"]
    assert [line.split(": only in ")[0] for line in found.single] == [c.cell_id for c in a.cells]


def test_a_repeated_run_is_held_to_what_no_software_changes(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", total=61.0)
    changed = [c.model_copy(update={"operator_calls": 7.0}) for c in b.cells]
    rows = exact_quantities(a, replace(b, cells=changed))
    assert [r.what for r in rows if not r.same] == [f"required FLOPs of {a.cells[0].cell_id}"]
    assert [(r.what, r.before) for r in rows if r.hashed] == [
        ("inputs of skipnet38", "abc"),
        ("weights of skipnet38", "none"),
    ]
    missing = exact_quantities(a, replace(b, cells=b.cells[:1]))
    assert [r.after for r in missing if r.what == f"outcome of {a.cells[1].cell_id}"] == ["not there"]


def test_the_command_prints_verdicts_and_ends_with_1_where_something_is_slower(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b", ours_ms=8.8, seed=1)
    result = call("compare", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1 and "SLOWER: time changed by +1" in result.stdout
    assert result.stdout.endswith("1 SLOWER, 1 SAME\n")
    result = call("compare", tmp_path / "b", tmp_path / "a", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)["changes"]
    assert [c["outcome"] for c in found] == ["FASTER", "SAME"]
    assert found[0]["time_ratio"]["value"] == pytest.approx(1 / 1.1, rel=0.01)


def with_deployed(run: Run, speedup: float, form: str = "plain") -> Run:
    """The run with the dynamic network in a fastest way."""
    against = Speedup(
        value=speedup, low=speedup / 1.005, high=speedup * 1.005, baseline=RESNET, primary=True, resolution=0.01
    )
    way: dict[str, Any] = {"engine": "onnxruntime", "control": "graph", "form": form}
    fastest = cell("compaction", deployed=True, deployed_speedups=[against], latency=latency(), **way)
    with (run.path / "cells.jsonl").open("a", encoding="utf-8") as file:
        file.write(fastest.model_dump_json() + "\n")
    return Run.open(run.path)


def test_deployed_speedups_are_compared_whichever_way_is_the_fastest(tmp_path: Path) -> None:
    a = with_deployed(make(tmp_path / "a"), 1.5)
    b = with_deployed(make(tmp_path / "b", seed=1), 1.3, form="folded")
    found = compare(a, b)
    (pair,) = found.deployed
    assert pair.judged.outcome == "SLOWER" and pair.judged.change.value == pytest.approx(1.5 / 1.3)
    assert len(found.changes) == 2 and not found.single
    assert compare(a, a).deployed[0].judged.outcome == "SAME"
    assert not compare(make(tmp_path / "c"), b).deployed
    result = call("compare", tmp_path / "a", tmp_path / "b")
    assert "compaction, onnxruntime, graph before, compaction, folded, onnxruntime, graph now" in result.stdout
    assert "1.50x (1.49 to 1.51)" in result.stdout and result.exit_code == 0
    told = json.loads(call("compare", tmp_path / "a", tmp_path / "b", "--json").stdout)["deployed"]
    assert [(d["network"], d["outcome"]) for d in told] == [("dynamic", "SLOWER")]


def test_another_fastest_way_is_no_difference_of_a_repeated_run(tmp_path: Path) -> None:
    a = with_deployed(make(tmp_path / "a"), 1.5)
    b = with_deployed(make(tmp_path / "b", seed=1), 1.5, form="folded")
    assert all(row.same for row in exact_quantities(a, b))
    assert "another way is the fastest in" in call("reproduce", a.path, "--with", b.path).stdout


def test_bad_use_of_the_command_is_exit_code_2(tmp_path: Path) -> None:
    make(tmp_path / "a")
    result = call("compare", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 2 and "holds no run" in result.stderr
    result = call("compare", tmp_path / "a", tmp_path / "a", "--allow", "weather")
    assert result.exit_code == 2 and "one of machine, threads" in result.stderr
