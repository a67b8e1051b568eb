"""The gate on a small repository with real processes. What the clock says is not asserted here, but for what it may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.torch import save_file

import dynbench
from dynbench.errors import UserError
from dynbench.experiment.spec import Options
from dynbench.gate import trees
from dynbench.gate.check import check
from dynbench.gate.exact import answers_differ, exact_changes
from dynbench.gate.git import git
from dynbench.gate.revision_worker import RevisionWorker
from dynbench.gate.trees import CannotTell
from dynbench.paths import load_object
from dynbench.store.gate import Gate
from dynbench.store.schema import Arm

TINY = Path(__file__).parents[1] / "experiment" / "tiny"
OPTIONS = Options(threads=1, batch_sizes=[4])


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny network in a repository of its own, committed as 'main'."""
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "repo"
    shutil.copytree(TINY, root, ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "-q", "-b", "main", str(root))
    git(root, "config", "user.email", "a@b.c")
    git(root, "config", "user.name", "a")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root


def edit(root: Path, old: str, new: str, file: str = "net.py") -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))


def checked(root: Path, **changes: object) -> Gate:
    return check(str(root / "tiny.toml"), OPTIONS, **{"base": "main", "seconds": 0.1, **changes})  # type: ignore[arg-type]


def nothing_is_left(root: Path) -> bool:
    folders = list(Path(tempfile.gettempdir()).glob(f"dynbench-check-*-{os.getpid()}-*"))
    return not folders and len(git(root, "worktree", "list").splitlines()) == 1


def test_the_same_code_has_the_same_answers_and_work_and_is_not_found_slower_beyond_doubt(repository: Path) -> None:
    gate = checked(repository)
    (cell,) = gate.cells
    assert cell.name == "cascading, batch 4" and cell.exact == []
    assert (cell.arm, cell.batch_size) == (Arm(kind="strategy", strategy="cascading"), 4)
    assert cell.laps >= 2 * cell.processes >= 6 and cell.again.low <= cell.again.value <= cell.again.high
    assert gate.base.startswith("main (") and gate.exit_code in (0, 3)
    assert nothing_is_left(repository)


def test_more_work_and_other_answers_are_regressions_unless_accepted(repository: Path) -> None:
    edit(repository, "x = self.stem(x)", "x = self.stem(x) + 0 * self.stem(self.stem(x)[:, :8]) + 0.5")
    (cell,) = checked(repository).cells
    found = {e.what: e.regression for e in cell.exact}
    assert found.keys() >= {"executed FLOPs", "required FLOPs", "operator calls", "answers"} and all(found.values())
    gate = checked(repository, accept=["work", "answers", "decisions"])
    assert gate.cells[0].exact and not any(e.regression for e in gate.cells[0].exact)


def test_a_base_that_does_not_import_leaves_the_outcome_open(repository: Path) -> None:
    good = (repository / "net.py").read_text()
    (repository / "net.py").write_text("raise RuntimeError('half done')\n")
    git(repository, "commit", "-qam", "broken")
    (repository / "net.py").write_text(good)
    with pytest.raises(CannotTell, match=r"base: .*half done"):
        checked(repository)
    assert nothing_is_left(repository)


def test_a_base_with_another_version_of_dynbench_leaves_the_outcome_open(repository: Path) -> None:
    ours = Path(dynbench.__file__).parent
    shutil.copytree(ours, repository / "dynbench", ignore=shutil.ignore_patterns("__pycache__"))
    edit(repository, "PROTOCOL = ", "PROTOCOL = 1000 + ", "dynbench/gate/protocol.py")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "with a dynbench of its own")
    edit(repository, "PROTOCOL = 1000 + ", "PROTOCOL = ", "dynbench/gate/protocol.py")
    with pytest.raises(CannotTell, match="base: it has another version of dynbench"):
        checked(repository)
    git(repository, "commit", "-qam", "with this one")
    (cell,) = checked(repository).cells  # the code of dynbench itself is first-party then
    assert cell.exact == []


def test_a_base_with_other_dependencies_runs_with_them(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, about = tmp_path / "offset-1.0-py3-none-any.whl", "offset-1.0.dist-info"
    files = {
        "offset.py": "OFFSET = 0.5\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: offset\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
        packed.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"]))
    taken = "try:\n    from offset import OFFSET\nexcept ImportError:\n    OFFSET = 0.0\n\n\nclass "
    edit(repository, "x = self.stem(x)", "x = self.stem(x) + OFFSET")
    (repository / "net.py").write_text((repository / "net.py").read_text().replace("class ", taken, 1))
    (repository / "requirements.txt").write_text(f"{wheel}\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "needs another package")
    (repository / "requirements.txt").unlink()  # the head, here, has to do without
    (repository / "uv.lock").write_text("more")
    said: list[str] = []
    gate = checked(repository, say=said.append)
    assert [e.what for e in gate.cells[0].exact if e.regression][-1:] == ["answers"]
    assert [w.text.partition(",")[0] for w in gate.warnings if w.id == "DB-LOCK-01"] == ["uv.lock differs"]
    assert said[0] == "requirements.txt, uv.lock differ: an environment for the base (cached)"
    (environment,) = (tmp_path / "cache" / "environments").iterdir()
    base = tmp_path / "base"
    base.mkdir()
    (base / "requirements.txt").write_text(f"{wheel}\n")
    with monkeypatch.context() as nothing:  # is called to find it again
        nothing.setattr(trees, "_quiet", None)
        assert trees.environment_of(base) == environment / "bin" / "python"
    (cell,) = checked(repository, same_environment=True).cells
    assert cell.exact == []


def test_a_head_that_cannot_be_built_is_bad_use(repository: Path) -> None:
    edit(repository, 'model = "net.py:make"', 'model = "net.py:mak"', "tiny.toml")
    with pytest.raises(UserError, match="has no 'mak'"):
        checked(repository)


def test_a_workload_or_inputs_that_the_base_has_not_leave_the_outcome_open(repository: Path) -> None:
    shutil.copy(repository / "tiny.toml", repository / "new.toml")
    with pytest.raises(CannotTell, match=r"main has no new\.toml"):
        check(str(repository / "new.toml"), OPTIONS, base="main", seconds=0.1)
    edit(repository, "default_rng(", "default_rng(1 + ")
    with pytest.raises(CannotTell, match="the inputs differ from the base's"):
        checked(repository)
    assert nothing_is_left(repository)


def test_a_killed_check_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dynbench", "check", "tiny.toml", "--base", "main", "--time", "60"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(temporary)}
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    child = subprocess.Popen(command, cwd=repository, env=environment, text=True, **streams)
    assert child.stderr is not None
    assert child.stderr.readline().startswith("set 1,")
    assert len(list(temporary.glob(f"dynbench-check-*-{child.pid}-*"))) == 1
    processes = [
        p for p in psutil.Process(child.pid).children(recursive=True) if "dynbench.launch.fork_server" in p.cmdline()
    ]
    assert len(processes) >= 3
    child.kill()
    child.wait()
    gone, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive and len(gone) == len(processes)
    for _ in range(200):
        if not list(temporary.glob("dynbench-check-*")):
            break
        time.sleep(0.1)
    assert not list(temporary.glob("dynbench-check-*"))


def test_a_baseline_file_is_compared_through_the_static_network(repository: Path, tmp_path: Path) -> None:
    saved = tmp_path / "baseline.json"
    checked(repository, base=None, save=saved)
    gate = checked(repository, base=None, baseline=saved)
    (cell,) = gate.cells
    assert cell.exact == [] and gate.base == str(saved) and gate.exit_code in (0, 3)
    options = OPTIONS.model_copy(update={"strategies": ["masking"]})
    with pytest.raises(CannotTell, match="the baseline has no masking, batch 4; it has cascading, batch 4"):
        check(str(repository / "tiny.toml"), options, base=None, baseline=saved, seconds=0.1)


NOISE = """
import torch


def noisy(gate):
    def sampled(x, carry):
        score, carry = gate(x, carry)
        return score + torch.randn_like(score), carry

    return sampled


class """


def test_a_network_that_draws_random_numbers_is_not_accused(repository: Path, tmp_path: Path) -> None:
    quiet = (repository / "net.py").read_text()
    noisy = quiet.replace("lambda x, c: (x[:, 0], c)", "noisy(lambda x, c: (x[:, 0], c))").replace("class ", NOISE, 1)
    (repository / "net.py").write_text(noisy)
    git(repository, "commit", "-qam", "noise")
    (repository / "net.py").write_text(f"{noisy}# a comment\n")
    how = r"is not deterministic: .* differ in its decisions \(at block0, block1.*its answers \(by up to .*switch off"
    with pytest.raises(CannotTell, match=f"the network of the base {how}"):
        checked(repository)
    with pytest.raises(CannotTell, match=f"the network of the head {how}"):
        checked(repository, base=None, save=tmp_path / "baseline.json")
    (repository / "net.py").write_text(quiet)
    git(repository, "commit", "-qam", "quiet")
    (repository / "net.py").write_text(noisy)
    gate = checked(repository)  # noise that the head brings is a change of the head
    assert gate.exit_code == 1 and [e.what for e in gate.cells[0].exact] == ["decisions", "answers"]
    assert "decisions of the head are not deterministic" in gate.sentence


def test_weights_that_git_does_not_have_are_the_heads_on_both_sides(repository: Path) -> None:
    edit(repository, 'model = "net.py:make"', 'model = "net.py:make"\nweights = "weights/net.safetensors"', "tiny.toml")
    (repository / ".gitignore").write_text("weights/\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "weights from elsewhere")
    with pytest.raises(UserError, match="there is no weights file"):  # which the head lacks as well
        checked(repository)
    (repository / "weights").mkdir()
    made = load_object("net.py:make", repository)()
    save_file(made.state_dict(), repository / "weights" / "net.safetensors")
    said: list[str] = []
    gate = checked(repository, say=said.append)
    assert gate.cells[0].exact == []
    assert said[0] == gate.notes[0] == "the base uses the working tree's weights/, which git does not have"
    edit(repository, "weights/net", "weights/new", "tiny.toml")
    (repository / "weights" / "net.safetensors").rename(repository / "weights" / "new.safetensors")
    with pytest.raises(
        CannotTell, match=r"^base: .*main:weights/net.*; git has no weights/net.safetensors in main, and"
    ):
        checked(repository)


QUANTITY = """
from dynbench.store.quantity import Quantity

COST = Quantity(
    key="stages", header="stages", definition="Of the network.", exact=True, better="down", {how}
)
"""


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("measure=lambda arm: 10.0 + NUMBER", "stages: 10 -> 11 (+10.0 %)"),
        ('per="item", measure=lambda arm: (10.0 + NUMBER) / arm.items', "stages: 10 -> 11 (+10.0 %)"),
        ("read=lambda cell: cell.operator_calls * (1 + NUMBER)", "stages: {0:,.0f} -> {1:,.0f} (+100.0 %)"),
    ],
)
def test_a_quantity_of_the_users_own_that_is_exact_must_not_grow(how: str, text: str, repository: Path) -> None:
    settings = (repository / "tiny.toml").read_text()
    (repository / "tiny.toml").write_text(settings.replace("[inputs]", 'quantities = ["mine.py:COST"]\n\n[inputs]', 1))
    (repository / "mine.py").write_text("NUMBER = 0\n" + QUANTITY.format(how=how))
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "a quantity")
    edit(repository, "NUMBER = 0", "NUMBER = 1", "mine.py")
    (change,) = checked(repository).cells[0].exact
    assert (change.what, change.regression) == ("stages", True)
    assert change.text == text.format(change.base, change.head)


def test_a_strategy_of_the_users_own_is_that_of_each_revision(repository: Path) -> None:
    mine = "from dynbench.strategies import Masking\n\n\nclass Mine(Masking):\n    name = 'mine'\n"
    (repository / "mine.py").write_text(mine)
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "a strategy")
    later = mine + "\n    def run(self, ex, model, args):\n        return super().run(ex, model, (args[0] + 1,))\n"
    (repository / "mine.py").write_text(later)
    options = OPTIONS.model_copy(update={"strategies": [f"{repository / 'mine.py'}:Mine"]})
    (cell,) = check(str(repository / "tiny.toml"), options, base="main", seconds=0.1).cells
    assert cell.name == "mine, batch 4"
    assert {"operator calls", "answers"} <= {e.what for e in cell.exact}


def test_a_strategy_that_the_model_refuses_is_bad_use(repository: Path) -> None:
    options = OPTIONS.model_copy(update={"strategies": ["cascading"]})
    edit(repository, 'model = "net.py:make"', 'model = "net.py:plain"', "tiny.toml")
    with pytest.raises(UserError, match="^cascading: "):
        check(str(repository / "tiny.toml"), options, base="main", seconds=0.1)


def test_the_stream_that_the_first_process_made_is_the_stream_of_the_others(tmp_path: Path) -> None:
    request: dict[str, Any] = {
        "file": str(TINY / "tiny.toml"),
        "options": OPTIONS.model_dump(mode="json"),
        "tree": str(TINY),
        "names": [],
        "static": False,
    }
    workers = [RevisionWorker() for _ in range(3)]
    files = [tmp_path / name for name in ("stream.npz", "stream.npz", "other.npz")]
    prepared = [w.prepare(**request, stream_file=str(file)) for w, file in zip(workers, files, strict=True)]
    assert files[0].is_file() and prepared[0] == prepared[1] == prepared[2]
    facts = [worker.exact(0, str(tmp_path / f"{i}.safetensors")) for i, worker in enumerate(workers)]
    assert facts[0] == facts[1] == facts[2] and facts[0]["random"] == {}


def test_counted_changes_are_told_and_only_more_is_a_regression() -> None:
    one = {
        "executed FLOPs": 10.0,
        "required FLOPs": 8.0,
        "operator calls": 3.0,
        "host waits": {"unavailable": "a CPU"},
        "decisions": "a" * 64,
    }
    assert list(exact_changes(one, one)) == []
    other = one | {"executed FLOPs": 12.0, "operator calls": 2.0, "host waits": 4.0, "decisions": "b" * 64}
    found = {e.what: (e.regression, e.text) for e in exact_changes(one, other)}
    assert found == {
        "executed FLOPs": (True, "executed FLOPs: 10 -> 12 (+20.0 %)"),
        "operator calls": (False, "operator calls: 3 -> 2 (-33.3 %)"),
        "decisions": (True, f"decisions differ: {'a' * 12} -> {'b' * 12}"),
    }


def test_answers_may_differ_by_rounding_only() -> None:
    one = {"0.0": np.array([1.0, -4.0])}
    assert answers_differ(one, {"0.0": np.array([1.0 + 1e-5, -4.0])}) is None
    assert "by up to 0.25" in str(answers_differ(one, {"0.0": np.array([2.0, -4.0])}))
    not_finite = "NaN or infinite values are not the same"
    assert answers_differ(one, {"0.0": np.array([np.nan, -4.0])}) == not_finite
    assert answers_differ(one, {"0.0": np.zeros(3)}) == answers_differ(one, {}) == "they have another shape"
    special = {"0.0": np.array([np.nan, np.inf, -np.inf, 1.0])}
    assert answers_differ(special, {"0.0": special["0.0"].copy()}) is None
    for i, other in enumerate((np.inf, -np.inf, np.nan)):
        changed = special["0.0"].copy()
        changed[i] = other
        assert answers_differ(special, {"0.0": changed}) == not_finite
    masked = {"0.0": np.array([-np.inf, 1.0])}  # an infinity does not make a difference look small
    assert "by up to 1 of" in str(answers_differ(masked, {"0.0": np.array([-np.inf, 2.0])}))
    tokens = {"0.0": np.array([50000, 7])}
    assert answers_differ(tokens, {"0.0": np.array([50000, 7])}) is None
    assert answers_differ(tokens, {"0.0": np.array([50001, 7])}) == "in 1 of 2 whole numbers"
