"""What is prepared for a GPU, as far as a machine without one can tell."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu.__main__ import COVERING, show, steps
from bench.gpu.energy import main as energy
from bench.gpu.needs import missing
from bench.gpu.steps import RESULTS, Step, play
from dynbench import dynamic
from dynbench.cli import main as cli
from dynbench.dynamic import DecisionPoint, points
from dynbench.errors import UserError
from dynbench.experiment.networks import build_model
from dynbench.experiment.spec import load_spec

COUNTS = "import time, sys\ntry:\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('kept'); sys.exit(130)"


def python(name: str, code: str, most_s: float = 30) -> Step:
    return Step(name, [sys.executable, "-c", code], most_s, (("ONE", "1"),))


def test_each_result_is_written_before_the_next_step_begins(tmp_path: Path) -> None:
    seen = []

    def say(line: str) -> None:
        if not line.startswith(" "):
            file = tmp_path / RESULTS
            seen.append(json.loads(file.read_text()) if file.exists() else [])

    todo = [python("a", "import os; print(os.environ['ONE'])"), python("b", "print('no luck'); raise SystemExit(3)")]
    found = play([*todo, python("c", "")], tmp_path, 60, say)
    assert [len(rows) for rows in seen] == [0, 1, 2]
    assert [(o.name, o.status) for o in found] == [("a", "ok"), ("b", "failed"), ("c", "ok")]
    assert found[1].why == "exit code 3; no luck" and (tmp_path / "a.txt").read_text() == "1\n"
    assert [o["status"] for o in json.loads((tmp_path / RESULTS).read_text())] == ["ok", "failed", "ok"]


def test_a_step_that_takes_too_long_is_interrupted_and_keeps_what_it_has(tmp_path: Path) -> None:
    (one,) = play([python("slow", COUNTS, 1.5)], tmp_path, 60, lambda _: None)
    assert one.status == "cut off" and (tmp_path / "slow.txt").read_text() == "kept\n"


def test_what_ignores_an_interrupt_ends_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.gpu.steps.GRACE_S", 0.5)
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    deaf = (
        "import signal, subprocess, sys; signal.signal(2, signal.SIG_IGN); "
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    (one,) = play([python("deaf", deaf, 1.0)], tmp_path, 60, lambda _: None)
    assert one.status == "cut off" and one.seconds < 4
    time.sleep(max(0.0, 5 - one.seconds))
    assert not (tmp_path / "late").exists()


def test_what_the_time_does_not_suffice_for_is_left_out(tmp_path: Path) -> None:
    (one,) = play([python("late", "")], tmp_path, 1, lambda _: None)
    assert (one.status, one.log) == ("left out", None)


def test_the_steps_come_in_the_order_that_was_asked_for_and_fit(tmp_path: Path) -> None:
    todo = list(steps(tmp_path, "cuda"))
    names = [s.name for s in todo]
    order = ["doctor", "tests", "verify_float32", "verify_bfloat16", "run", "layer", "deployed", "energy"]
    assert [name for name in names if name in order] == order and names[-1].startswith("trace")
    assert len(names) == len(set(names))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_commands_are_accepted(tmp_path: Path, device: str) -> None:
    checked = 0
    for step in steps(tmp_path, device):
        if step.command[2:3] == ["dynbench"]:
            name, *words = step.command[3:]
            cli.commands[name].make_context(name, list(words))
            checked += 1
    assert checked >= 7


def test_what_is_verified_covers_all_kinds_of_decision_points() -> None:
    kinds: set[type] = set()
    for name in COVERING:
        spec = load_spec(name)
        model = build_model(spec, spec.folder)
        kinds |= {type(m) for m in (*model.modules(), *points(model).values())}
    every = {k for k in vars(dynamic).values() if isinstance(k, type) and issubclass(k, DecisionPoint)}
    assert len(COVERING) == 12 and (every | {dynamic.Ahead}) - {DecisionPoint} <= kinds


def test_missing_packages_are_named(tmp_path: Path) -> None:
    assert missing() == []
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[project]\ndependencies = ["click>=1000", "no-such-package>=1", "numpy"]\n'
        '[project.optional-dependencies]\ndev = ["pytest>=1", "hypothesis>=1000", "no-such-tool"]\n'
    )
    found = missing(file)
    assert [text.partition(" ")[0] for text in found] == ["click>=1000", "no-such-package>=1", "hypothesis>=1000"]
    assert found[1].endswith("(there is none)")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--device", "cuda:99"), "device 'cuda:99' is not available"),
        (("--device", "cpu", "--only", "nothing"), "--only nothing: no such step"),
        (("--device", "cpu", "--minutes", "nan"), "--minutes nan"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, words: tuple[str, ...], part: str) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path / "out"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_results_of_before_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="has a folder 'run'"):
        show(tmp_path, "cpu", 60, ["run"])


def test_energy_that_was_not_measured_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["energy", str(tmp_path)])
    assert energy() == 1
    assert "not measured: " in capsys.readouterr().out
