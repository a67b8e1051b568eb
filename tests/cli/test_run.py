"""From a command line to a run directory, a report and exports."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dynbench.experiment
from dynbench.errors import DynbenchError
from dynbench.experiment import Options, Plan
from dynbench.experiment import Result as Outcome
from dynbench.store.run import Run
from tests.cli import QUICK, TINY, call


def test_a_run_ends_with_its_report_and_says_where_it_is(finished: Path) -> None:
    run = Run.open(finished)
    assert run.manifest.status == "complete"
    assert {c.arm.name for c in run.cells if c.status == "ok"} >= {"compaction", "plain"}
    assert run.manifest.command == ["dynbench", "run", str(TINY), *QUICK, "--out", str(finished)]
    assert (finished / "report.html").is_file() and (finished / "report.md").is_file()


def test_options_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], Options]] = []

    def remember(workloads: list[str], options: Options, *_: object, **__: object) -> Outcome:
        asked.append((workloads, options))
        return Outcome(None, Plan([], {"a": None}, {}))  # type: ignore[dict-item]

    monkeypatch.setattr(dynbench.experiment, "run_experiment", remember)
    call("run", "--dry-run")
    call(
        "run",
        "a.toml",
        "b",
        "--strategy",
        "dense,masking",
        "--strategy",
        "dense",
        "--batch",
        "1,8",
        "--batch",
        "32",
        "--decisions",
        "learned,synthetic",
        "--dtype",
        "float64",
        "--threads",
        "2",
        "--time-limit",
        "3",
        "--precision",
        "5",
        "--seed",
        "7",
        "--data",
        "images",
        "--dry-run",
    )
    call("run", "idk_digits", "all", "--dry-run")
    assert asked[0] == (list(dynbench.experiment.DEFAULT_SUITE), Options(deployed=True))
    assert set(asked[2][0]) == set(dynbench.experiment.workload_files())
    assert asked[2][0][0] == "idk_digits" and asked[2][0].count("idk_digits") == 1
    workloads, options = asked[1]
    assert workloads == ["a.toml", "b"]
    assert options == Options(
        strategies=["dense", "masking"],
        batch_sizes=[1, 8, 32],
        decisions=["learned", "synthetic"],
        dtype="float64",
        threads=2,
        time_limit_s=3.0,
        precision=0.05,
        seed=7,
        deployed=True,
        data_dir=Path("images"),
    )


@pytest.mark.parametrize(
    ("outcome", "code"),
    [({}, 0), ({"failures": {"other": "no such weights"}}, 1), ({"interrupted": True}, 130)],
    ids=["complete", "a workload failed", "Ctrl-C"],
)
def test_the_exit_code_says_how_a_run_ended_and_the_report_is_always_written(
    outcome: dict[str, object], code: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("report*"))
    ended = Outcome(out, Plan([], {}, {}), **outcome)  # type: ignore[arg-type]
    monkeypatch.setattr(dynbench.experiment, "run_experiment", lambda *_, **__: ended)
    assert call("run", TINY, "--out", out).exit_code == code
    assert (out / "report.html").is_file()


def test_a_failure_that_is_not_the_user_s_is_one_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Outcome:
        raise DynbenchError("the measuring process died (signal SIGKILL)")

    monkeypatch.setattr(dynbench.experiment, "run_experiment", fail)
    result = call("run", TINY)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: the measuring process died (signal SIGKILL)"


def test_a_dry_run_shows_the_plan_and_the_refusals_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("run", TINY, "--dry-run")
    assert result.exit_code == 0
    assert "synthetic keep=0.50" in result.stdout
    assert "n/a: per_sample on tiny: item by item" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("3 groups, at most ")
    assert not list(tmp_path.iterdir())


def as_written(run: Run) -> dict[str, str]:
    """What became of the cells that are measured whichever way is found to be the fastest."""
    ways = (c for c in run.cells if (c.arm.engine, c.arm.form, c.arm.control) == ("eager", "plain", "host"))
    return {c.cell_id: c.status for c in ways if c.arm.without is None}


def test_a_truncated_run_is_reported_and_resumed_as_it_was_asked_for(finished: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(finished, tmp_path / "cut")
    lines = (cut / "cells.jsonl").read_text().splitlines(keepends=True)
    (cut / "cells.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])
    assert call("report", cut).exit_code == 0
    assert call("run", "--resume", cut).exit_code == 0
    whole, again = Run.open(finished), Run.open(cut)
    assert as_written(again) == as_written(whole)
    for run in (whole, again):  # which way is the fastest may be another one now; there is one of each network
        assert [(c.arm.baseline, c.status) for c in run.cells if c.deployed] == [(None, "ok"), ("plain", "ok")]
    assert again.manifest.command == whole.manifest.command
    assert not again.warnings


def test_the_newest_run_is_reported_and_exported_by_default(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("20260101-000000-cpu", "20260102-000000-cpu"):
        shutil.copytree(finished, tmp_path / "runs" / name, ignore=shutil.ignore_patterns("report*"))
    assert call("report", "--format", "md").exit_code == 0
    assert call("export").exit_code == 0
    old, new = sorted((tmp_path / "runs").iterdir())
    assert not list(old.glob("report*")) and not (old / "export").exists()
    assert (new / "report.md").is_file() and not (new / "report.html").exists()
    document = json.loads((new / "export" / "run.json").read_text())
    with (new / "export" / "cells.csv").open() as f:
        assert len(list(csv.DictReader(f))) == len(document["cells"])


WITHOUT_TORCH = """
import sys


class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ImportError("there is no torch here")


sys.meta_path.insert(0, NoTorch())
from dynbench.cli import main
main(sys.argv[1:])
"""


def test_a_report_is_made_where_there_is_no_torch(finished: Path, tmp_path: Path) -> None:
    words = ("report", finished, "--out", tmp_path / "elsewhere")
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], check=True, capture_output=True)
    assert (tmp_path / "elsewhere" / "report.md").read_text() == (finished / "report.md").read_text()


def test_the_last_lines_count_what_failed_and_say_why(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("report*"))
    run = Run.open(out)
    measured = sum(cell.status == "ok" for cell in run.cells)
    cells = [json.loads(line) for line in (out / "cells.jsonl").read_text(encoding="utf-8").splitlines()]
    broken = next(cell for cell in cells if cell["status"] == "ok")
    broken |= {"status": "failed", "reason": "not deterministic: Gate 'gate' draws random numbers"}
    (out / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells), encoding="utf-8")
    result = call("run", "--resume", out)
    lines = result.stdout.splitlines()
    assert f"cells: {measured - 1} measured, 1 failed" in "\n".join(lines)
    assert "1 failed of tiny: not deterministic: Gate 'gate' draws random numbers" in lines
