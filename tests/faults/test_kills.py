"""A few of the kills that `python -m bench.kills` carries out, at moments that are fixed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.kills import net
from bench.kills.leftovers import processes
from bench.kills.scene import KINDS, Scene
from bench.kills.table import readme
from bench.kills.trial import Trial, carry_out, drawn
from dynbench.scratch import make_scratch
from dynbench.store.lock import locked
from tests.cli import call


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    made = Scene(tmp_path_factory.mktemp("kills"))
    made.prepare([KINDS["history add"], KINDS["report"]], warm=False)
    return made


def hit(scene: Scene, command: str, signal: str, to: str, fraction: float) -> Trial:
    trial = Trial(0, command, signal, to, fraction)
    for _ in range(5):  # it may be faster than it was when nobody disturbed it
        carry_out(trial, scene)
        if trial.landed:
            break
        trial.fraction /= 2
    assert trial.landed
    return trial


@pytest.mark.parametrize(
    ("command", "signal", "to", "fraction"),
    [
        ("history add", "SIGKILL", "process alone", 0.5),
        ("report", "SIGTERM", "process group", 0.7),
        ("history add", "SIGKILL", "process group", 0.8),
    ],
)
def test_after_a_kill_the_next_start_loses_nothing_and_leaves_nothing(
    command: str, signal: str, to: str, fraction: float, scene: Scene
) -> None:
    trial = hit(scene, command, signal, to, fraction)
    assert trial.clean, trial
    assert trial.recorded == 2 and not trial.measured_again
    assert not processes(scene.mark)


def test_what_is_lost_and_what_is_left_is_seen(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    start, starts = scene.start, []

    def spoiled(arguments: tuple[str, ...], said: Path) -> subprocess.Popen[bytes]:
        """The next start removes the samples of a group, and leaves a folder, a file and a process."""
        starts.append(process := start(arguments, said))
        if len(starts) == 2:
            process.wait()
            next((scene.trial / "out" / "samples").iterdir()).unlink()
            (Path(scene.environment["TMPDIR"]) / "dynbench-forks-abc").mkdir()
            (scene.trial / "out" / ".dynbench-abc.part").touch()
            sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=scene.environment)
            request.addfinalizer(sleeper.wait)
            request.addfinalizer(sleeper.kill)
            while sleeper.pid not in processes(scene.mark):  # on a busy machine its environment is there a little later
                time.sleep(0.01)
        return process

    monkeypatch.setattr(scene, "start", spoiled)
    monkeypatch.setattr("bench.kills.trial.SETTLE_S", 0.5)
    trial = Trial(0, "history add", "SIGKILL", "process group", 0.3)
    carry_out(trial, scene)
    assert trial.landed and not trial.clean and len(trial.lost) == 1
    assert trial.files == ["TMPDIR/dynbench-forks-abc", "out/.dynbench-abc.part"] and len(trial.missing) == 1
    assert len(trial.processes) == 1 and "time.sleep(600)" in trial.processes[0]
    text = readme([trial], scene, "python -m bench.kills", 1, 20.0)
    assert "1 x SIGKILL, no other signal" in text and trial.lost[0] in text


def test_a_run_removes_what_dead_processes_left_and_not_what_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, out = tmp_path / "tmp", tmp_path / "run"
    temporary.mkdir()
    out.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    left = [sys.executable, "-c", "from dynbench.scratch import make_scratch; print(make_scratch('forks'))"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    folder = subprocess.run(left, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    mine = make_scratch("graph")
    assert Path(folder).name not in (path.name for path in temporary.iterdir())  # the next folder sweeps already
    Path(folder).mkdir()
    with locked(out):  # so that nothing is measured
        result = call("run", Path(net.__file__).with_name("net.toml"), "--out", out)
    assert result.exit_code == 2 and "is being written by" in result.output
    assert list(temporary.iterdir()) == [mine]


def test_what_is_drawn_depends_on_the_seed_and_the_number_only() -> None:
    kinds = list(KINDS.values())
    first = [drawn(0, n, kinds) for n in range(200)]
    assert first == [drawn(0, n, kinds) for n in range(200)] != [drawn(1, n, kinds) for n in range(200)]
    assert {t.command for t in first} == KINDS.keys() and {t.to for t in first} == {"process group", "process alone"}
    assert {t.signal for t in first} == {"SIGKILL", "SIGTERM", "SIGINT"}
