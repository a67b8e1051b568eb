"""`dynbench train` calls the recipe that a workload names."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from dynbench.paths import load_function
from dynbench.store.lock import locked
from tests.cli import call

RECIPE = """
import json

def train(session):
    asked = {"name": session.workload["name"], "out": str(session.out), "resume": session.resume}
    (session.out / "asked.json").write_text(json.dumps(asked))
"""
WORKLOAD = """
schema = 1
name = "own"
title = "Own"
model = "own.py:build"
inputs = { name = "digits" }
train = { recipe = "recipe.py:train" }
"""


def test_a_recipe_of_one_s_own_is_run_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "own.toml").write_text(WORKLOAD)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = call("train", tmp_path / "own.toml", "--quiet", "--resume")
    assert result.exit_code == 0, result.output
    asked = json.loads(Path("runs/trained/own/asked.json").read_text())
    assert asked == {"name": "own", "out": "runs/trained/own", "resume": True}
    assert "runs/trained/own" in result.stdout
    assert not Path("runs/trained/own/unfinished").exists()


STEPS = """
import json, os, signal
from torch import nn, optim
from dynbench.training.session import Settings

SIGNALS = {}

def train(session):
    settings = session.settings(Settings, "own", epochs=6)
    net = nn.Linear(1, 1)
    made = []
    for step in session.steps("own", settings)(settings.epochs, net=net):
        made.append(step)
        for number in SIGNALS.pop(step, []):
            os.kill(os.getpid(), number)
    (session.out / "made.json").write_text(json.dumps(made))

def outside(session):
    os.kill(os.getpid(), signal.SIGTERM)

def none(session):
    (session.out / "made.json").write_text("[]")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.py").write_text(STEPS)
    for function in ("train", "outside", "none"):
        text = WORKLOAD.replace("recipe.py:train", f"recipe.py:{function}")
        (tmp_path / f"{function}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def signals(own: Path, at: dict[int, list[int]]) -> None:
    load_function("recipe.py:train", own).__globals__["SIGNALS"].update(at)


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_signal_ends_after_the_step_and_the_same_command_goes_on(
    own: Path, number: int, name: str, code: int
) -> None:
    before = signal.getsignal(number)
    signals(own, {2: [number]})
    stopped = call("train", "train.toml", "--out", "out", "--quiet")
    assert stopped.exit_code == code, stopped.output
    assert stopped.stderr == (
        f"Error: ended by {name}; kept: own@0 after 3 of 6 steps, in out; the same command goes on, "
        "--fresh begins anew\n"
    )
    assert "stopping after this step, which is kept" in stopped.stdout
    assert signal.getsignal(number) == before
    again = call("train", "train.toml", "--out", "out", "--quiet")
    assert again.exit_code == 0, again.output
    assert "going on with the unfinished training in out" in again.stdout
    assert json.loads(Path("out/made.json").read_text()) == [3, 4, 5]
    assert [p.name for p in Path("out").iterdir()] == ["made.json"]


def test_a_second_signal_and_one_outside_a_loop_end_at_once(own: Path) -> None:
    signals(own, {2: [signal.SIGTERM, signal.SIGTERM]})
    stopped = call("train", "train.toml", "--out", "out", "--quiet")
    assert stopped.exit_code == 143
    assert stopped.stderr.startswith("Error: ended by SIGTERM; nothing was to be kept yet, in out; the same command")
    outside = call("train", "outside.toml", "--out", "other", "--quiet")
    assert outside.exit_code == 143 and "Traceback" not in outside.output


def test_fresh_gives_up_what_is_unfinished_and_another_request_is_refused(own: Path) -> None:
    for arguments in ([], ["--fresh"]):
        signals(own, {2: [signal.SIGINT]})
        assert call("train", "train.toml", "--out", "out", "--quiet", *arguments).exit_code == 130
    other = call("train", "train.toml", "--out", "out", "--quiet", "--epochs", "9")
    assert other.exit_code == 2
    assert other.stderr == (
        "Error: out has an unfinished training with another epochs: none then, 9 now; --fresh begins anew, --out names "
        "another folder\n"
    )
    recipe = own / "recipe.py"
    recipe.write_text(recipe.read_text() + "# changed\n")
    signals(own, {4: [signal.SIGINT]})
    changed = call("train", "train.toml", "--out", "out", "--quiet")
    assert "the file of the recipe recipe.py:train has changed since" in changed.stdout
    assert "kept: own@0 after 5 of 6 steps" in changed.stderr
    fresh = call("train", "train.toml", "--out", "out", "--quiet", "--epochs", "9", "--fresh")
    assert fresh.exit_code == 0 and json.loads(Path("out/made.json").read_text()) == list(range(9))


def test_what_a_killed_process_left_is_removed_and_a_damaged_checkpoint_is_a_sentence(own: Path) -> None:
    signals(own, {2: [signal.SIGINT]})
    call("train", "train.toml", "--out", "out", "--quiet")
    parts = [Path("out") / ".dynbench-1.part", Path("out/unfinished/.dynbench-2.part")]
    for part in parts:
        part.write_text("")
    Path("out/unfinished/own@0.checkpoint").write_bytes(b"\x80\x02")
    damaged = call("train", "train.toml", "--out", "out", "--quiet")
    assert damaged.exit_code == 2 and damaged.stderr == (
        "Error: checkpoint out/unfinished/own@0.checkpoint cannot be read: it is damaged or of another version; "
        "--fresh begins anew\n"
    )
    assert not any(part.exists() for part in parts)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.toml", "--epochs", "3"], "--epochs 3: the recipe recipe.py:none has no epochs"),
        (["train.toml", "--epochs", "0"], "'--epochs': 0 is not in the range"),
        (["train.toml", "--epochs", "-1"], "'--epochs': -1 is not in the range"),
        (["train.toml", "--epochs", "9" * 40], "is not in the range"),
        (["train.toml", "--epochs", "1.5"], "'1.5' is not a valid integer"),
        (["train.toml", "--epochs", "nan"], "'nan' is not a valid integer"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(own: Path, arguments: list[str], says: str) -> None:
    result = call("train", *arguments, "--out", "out", "--quiet")
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1, result.output
    assert not Path("out/unfinished").exists()  # nothing was kept, so it cannot be in the way of the next command


def test_a_folder_that_another_process_trains_into_is_refused(own: Path) -> None:
    Path("out").mkdir()
    with locked(Path("out")):
        result = call("train", "train.toml", "--out", "out", "--quiet")
    assert result.exit_code == 2 and "is being written by process" in result.stderr
