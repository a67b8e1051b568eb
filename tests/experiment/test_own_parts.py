"""A user's own strategy, engine, load, target and quantity: one file each, and nothing of the package is touched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dynbench.errors import UserError
from dynbench.experiment import Options, load_spec, run_experiment
from dynbench.experiment.parts import Parts
from dynbench.experiment.spec import check_options
from dynbench.store.run import Run
from tests.cli import call

HERE = Path(__file__).parent
QUICK = {"threads": 1, "time_limit_s": 0.2, "precision": 0.9, "decisions": ["learned"], "batch_sizes": [4]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a workload and parts of their own; the working folder."""
    for file in (HERE / "tiny" / "net.py", HERE / "tiny" / "tiny.toml", HERE / "own" / "parts.py"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(folder: Path, **options: Any) -> Run:
    run_experiment(["tiny.toml"], Options(**QUICK | {"controls": "none"} | options), folder / "run", command=[])
    return Run.open(folder / "run")


def test_an_own_strategy_is_measured_and_checked_beside_the_others(folder: Path) -> None:
    run = measured(folder, strategies=["compaction", "parts.py:Mine"])
    cells = {c.arm.key: c for c in run.cells}
    assert cells["mine"].status == "ok" and cells["mine"].arm.strategy == "mine"
    assert cells["mine"].max_error is not None and cells["mine"].max_error <= cells["mine"].tolerance
    assert cells["mine"].flops == cells["compaction"].flops


def test_a_workload_names_an_own_strategy_relative_to_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "tiny.toml"
    file.write_text(
        file.read_text(encoding="utf-8").replace("[run]\n", '[run]\nstrategies = ["masking", "parts.py:Mine"]\n'),
        encoding="utf-8",
    )
    monkeypatch.chdir(folder.parent)
    assert list(Parts.of(load_spec(str(file)), Options()).strategies) == ["masking", "mine"]


def test_several_engines_stand_in_one_group_each_against_its_own_baseline(folder: Path) -> None:
    run = measured(folder, engines=["eager", "parts.py:Counting"], strategies=["masking", "compaction"])
    keys = {c.arm.key: c for c in run.cells}
    assert set(keys) == {
        *("masking", "compaction", "baseline:plain", "control:compaction, live decisions"),
        *("masking, counting", "compaction, counting", "baseline:plain, counting"),
        "control:compaction, live decisions, counting",
    }
    assert {c.status for c in run.cells} == {"ok"}
    assert len({c.group_id for c in run.cells}) == 1
    assert all(len(c.speedups) == (c.arm.kind != "baseline") for c in run.cells)
    assert keys["compaction"].flops == keys["compaction, counting"].flops
    assert run.manifest.environment["engines"]["counting"] == {"version": 1}  # type: ignore[index]
    samples = run.samples(run.cells[0].group_id)
    rounds = samples.groupby("arm")["round"].max()
    assert rounds.max() - rounds.min() == 0 and set(rounds.index) == {*keys, "baseline:plain, again"}


def test_the_answer_of_an_engine_is_checked_not_that_of_the_network_as_written(folder: Path) -> None:
    run = measured(folder, engines=["parts.py:Broken"], strategies=["compaction"])
    cell = next(c for c in run.cells if c.arm.kind == "strategy")
    assert cell.status == "failed" and str(cell.reason).startswith("wrong answer")


def test_an_own_load_is_part_of_the_identity(folder: Path) -> None:
    run = measured(folder, load="parts.py:Backwards", strategies=["compaction"])
    assert {c.arm.load for c in run.cells} == {"backwards"}
    samples = run.samples(run.cells[0].group_id)
    one = samples[(samples["arm"] == "compaction, backwards") & (samples["round"] == 0)].sort_values("batch_id")
    assert one["start_ns"].is_monotonic_decreasing and len(one) > 1


def test_an_own_target_starts_the_measuring_process(folder: Path) -> None:
    run = measured(folder, target="parts.py:Here", strategies=["compaction"])
    assert (folder / "started").exists()
    assert "ok" in {c.status for c in run.cells}


def test_own_quantities_are_measured_stored_and_described(folder: Path) -> None:
    file = folder / "tiny.toml"
    text = file.read_text(encoding="utf-8")
    named = 'title = "A tiny network"\nquantities = ["parts.py:ITEMS_PER_CALL", "parts.py:HALF_MS"]\n'
    file.write_text(text.replace('title = "A tiny network"\n', named), encoding="utf-8")
    run = measured(folder, strategies=["compaction"])
    for cell in run.cells:
        assert cell.latency is not None
        assert cell.own == {"items_per_call": 4.0, "half_item_ms": pytest.approx(cell.latency.item_ms / 2)}
    assert [q.key for q in run.manifest.workloads["tiny"].quantities] == ["items_per_call", "half_item_ms"]
    assert call("report", "run").exit_code == 0
    page = (folder / "run" / "report.md").read_text(encoding="utf-8")
    assert "half the time (ms/item)" in page and "Half the time of an item." in page
    assert call("export", "run", "--format", "csv").exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategies": ["parts.py:Half"]}, "does not implement 'loop'"),
        ({"strategies": ["parts.py:Taken"]}, "named 'masking'"),
        ({"strategies": ["parts.py:NOTHING"]}, "no class derived from"),
        ({"strategies": ["parts.py:Mien"]}, "did you mean Mine"),
        ({"strategies": ["nowhere.py:Mine"]}, "there is no file .*nowhere.py"),
        ({"engines": ["parts.py:NoPrepare"]}, "not an engine: it has no 'prepare'"),
        ({"load": "parts.py:NoPrepare"}, "not a load: it has no 'issue'"),
    ],
)
def test_what_does_not_fit_its_protocol_is_one_sentence_that_names_the_method(
    folder: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        Parts.of(load_spec("tiny.toml"), check_options(Options(**options)))
    assert "\n" not in str(refused.value)


def test_through_the_command_a_bad_part_ends_with_2_and_one_sentence(folder: Path) -> None:
    for option, reference in (("--engine", "parts.py:NoPrepare"), ("--target", "parts.py:NoPrepare")):
        done = call("run", "tiny.toml", option, reference, "--out", "run")
        assert done.exit_code == 2 and "Traceback" not in done.output
        assert "NoPrepare is not" in done.output
