"""Nothing that writes follows a symbolic link that somebody planted where it writes, under whatever name."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import dynbench
import dynbench.experiment.calibrate
from dynbench.deploy.agents import python_agent
from dynbench.deploy.job import Timing, write_job
from dynbench.deploy.targets.outcome import kept
from dynbench.devices.profiles import load_profile
from dynbench.errors import UserError
from dynbench.files import append_text, write_aside, write_text
from dynbench.gate import check as gate_check
from dynbench.gate.baseline_file import Baseline, save
from dynbench.launch.local import _append
from dynbench.store.lock import LOCK, locked
from dynbench.store.run import LOG
from tests.cli import call
from tests.faults import fuzz
from tests.faults.fuzz import in_this_process
from tests.faults.links import names_beside, plant, plant_folder, watched
from tests.faults.mutations import remove
from tests.gate.test_baseline_file import TABLE
from tests.report.made_up_gate import cell, gate

RUN = ("--time-limit", "0.02", "--precision", "90", "--batch", "8", "--strategy", "masking", "--as-written")
RUN += ("--decisions", "learned", "--controls", "none")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workload, its run, a history, a bundle; and a run of two workloads."""
    folder = tmp_path_factory.mktemp("links")
    fuzz.prepare(folder)
    second = (folder / "net.toml").read_text().replace('name = "net"', 'name = "net2"')
    (folder / "net2.toml").write_text(second)
    with in_this_process():
        assert call("run", folder / "net.toml", folder / "net2.toml", *RUN, "--out", folder / "two").exit_code == 0
    for file in ("report.html", "report.md", "figures", "workloads"):
        remove(folder / "two" / file)
    torch.save({"weight": torch.ones(3)}, folder / "w.pt")
    return folder


def _command(*args: object) -> None:
    with in_this_process():
        result = call(*args)
    assert result.exit_code in (0, 1, 2, 143), result.output
    if result.exit_code == 2:
        raise UserError(result.output)


def _check(scene: Path, out: Path) -> None:
    names = ("markdown", "junit", "json", "bencher", "github-action-benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_check, "check", lambda *_, **__: gate(cell("SLOWER", 1.1)))
        patch.setenv("GITHUB_STEP_SUMMARY", str(out / "summary.md"))
        _command("check", scene / "net.toml", "--base", "x", *(a for n in names for a in (f"--{n}", out / n)))


def _calibrate(scene: Path, out: Path) -> None:
    profile = load_profile(scene / "profile.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynbench.experiment.calibrate, "calibrate", lambda *_, **__: (profile, [], None))
        _command("calibrate", "--out", out / "profile.toml")


DATABASE = "history.db"
RECIPE = """
import os, signal
from torch import nn
from dynbench.training.session import Settings

def train(session):
    net, settings = nn.Linear(4, 4), session.settings(Settings, "own", epochs=2)
    for step in session.steps("own", settings)(2, net=net):
        session.note("own", {"step": step})
    session.save("own", net, {"model": "own"})

def stopped(session):
    for step in session.steps("own", session.settings(Settings, "own", epochs=2))(2, net=nn.Linear(4, 4)):
        session.note("own", {"step": step})
        os.kill(os.getpid(), signal.SIGTERM)
"""


def _train(recipe: str) -> Callable[[Path, Path], None]:
    def write(scene: Path, out: Path) -> None:
        text = (scene / "net.toml").read_text()
        (scene / f"{recipe}.toml").write_text(f'{text}\n[train]\nrecipe = "recipe.py:{recipe}"\n')
        (scene / "recipe.py").write_text(RECIPE)
        _command("train", scene / f"{recipe}.toml", "--out", out, "--quiet")

    return write


def _log_and_lock(scene: Path, out: Path) -> None:
    with contextlib.suppress(OSError):
        _append(out / LOG, b"what a model prints")
    with locked(out):
        pass


def _job(scene: Path, out: Path) -> None:
    write_job(scene / "bundle", out, Timing())
    kept(b"{}", out)


def _agent(scene: Path, out: Path) -> None:
    python_agent.write(out, {"status": "failed"})


@dataclass(frozen=True)
class Writer:
    """What writes a folder.

    Attributes:
        name: of it.
        write: given the scene and the folder.
        before: run directory of the scene of which the folder is a copy before.
        more: names of files that it writes besides those that are there in the end.
        refused: names of files that it refuses before it begins, where a link is there.
    """

    name: str
    write: Callable[[Path, Path], None]
    before: str | None = None
    more: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def folder(self, scene: Path, out: Path) -> Path:
        """The folder as it is before."""
        if self.before is None:
            out.mkdir()
        else:
            shutil.copytree(scene / self.before, out)
        return out


def _on(*args: object) -> Callable[[Path, Path], None]:
    """A command that writes into the run that it reads."""
    return lambda _, out: _command(*args, out)


WRITERS = (
    Writer(  # with its report
        "run",
        lambda here, out: _command("run", here / "net.toml", *RUN, "--out", out),
        refused=("cells.jsonl", "manifest.json", LOCK),
    ),
    Writer("run --resume", _on("run", "--resume"), "whole", ("cells.jsonl", "manifest.json"), (LOCK,)),
    Writer("report of several", _on("report"), "two"),
    Writer("export", _on("export"), "whole"),
    Writer("history report", lambda here, out: _command("history", "report", "--db", here / DATABASE, "--out", out)),
    Writer("compile", lambda here, out: _command("compile", here / "net.toml", "--out", out)),
    Writer("trace", lambda here, out: _command("trace", here / "net.toml", "--batches", 1, "--out", out)),
    Writer("trace of a graph", lambda here, out: _command("trace", here / "net.toml", "--graph", "--out", out)),
    Writer("check", _check),
    Writer("check --save", lambda here, out: save(out / "baseline.json", Baseline.model_validate(TABLE))),
    Writer("calibrate", _calibrate),
    Writer("train", _train("train")),
    Writer("train, interrupted", _train("stopped")),
    Writer("convert", lambda here, out: _command("convert", here / "w.pt", "--out", out / "w.safetensors", "--force")),
    Writer("job of a device", _job),
    Writer("agent on a device", _agent),
    Writer("log and lock", _log_and_lock, more=(LOG,), refused=(LOCK,)),
)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.name)
def test_no_link_is_followed(writer: Writer, scene: Path, tmp_path: Path) -> None:
    whole = writer.folder(scene, tmp_path / "whole")
    before = set(whole.rglob("*"))
    with watched(tmp_path) as watch:
        writer.write(scene, whole)
    assert not watch.following
    made = {str(path.relative_to(whole)): path.is_dir() for path in whole.rglob("*") if path not in before}
    files = [name for name, folder in made.items() if not folder and name not in writer.refused] + list(writer.more)
    folders = [name for name, folder in made.items() if folder]
    assert files
    names = [other for name in files for other in names_beside(name)]
    for there in (True, False):
        out = writer.folder(scene, tmp_path / f"out-{there}")
        targets = plant(out, names, tmp_path / f"yours-{there}", there=there)
        with contextlib.suppress(UserError):
            writer.write(scene, out)
        assert [name for name, target in targets.items() if target.touched] == []
        for number, name in enumerate(writer.refused):
            out = writer.folder(scene, tmp_path / f"out-{there}-{number}")
            targets = plant(out, [name], tmp_path / f"yours-{there}-{number}", there=there)
            with contextlib.suppress(UserError):
                writer.write(scene, out)
            assert not targets[name].touched
    for number, name in enumerate(folders):
        out = writer.folder(scene, tmp_path / f"out-{number}")
        targets = plant_folder(out, name, tmp_path / f"yours-{number}")
        with contextlib.suppress(UserError):
            writer.write(scene, out)
        assert not targets[name].touched, name


# Where files are written by other means than `dynbench.files`, and why no link can be planted there.
ON_THEIR_OWN = {
    "files": "the means",
    "data/cifar10": "a new folder of its own in the cache",
    "deploy/agents/python_agent": "runs without dynbench; opens exclusively",
    "deploy/targets/local": "a new folder of its own",
    "deploy/targets/ssh": "an archive in memory",
    "experiment/memory": "a new folder of its own",
    "gate/checkout": "a new folder of its own",
    "gate/revision_worker": "a new folder of its own",
    "gate/trees": "a new environment in the cache",
    "meters/memory": "a file of the kernel",
    "meters/timeline": "the null device, and a new folder of its own",
}
OPENERS = ("write_text", "write_bytes", "savefig", "to_csv", "to_parquet", "save_file", "copyfile")
OPENERS += ("export_chrome_trace",)


def test_every_file_is_written_by_one_module() -> None:
    root = Path(dynbench.__file__).parent
    found = set()
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if re.search(r"open\(|" + "|".join(OPENERS) + r"|torch\.save\(", text) and any(map(_writes, _calls(text))):
            found.add(str(file.relative_to(root).with_suffix("")))
    assert found == set(ON_THEIR_OWN)


def _calls(text: str) -> list[ast.Call]:
    """The calls in a module that are not of functions which it has from `dynbench.files`."""
    nodes = list(ast.walk(ast.parse(text)))
    ours = {a.name for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "dynbench.files" for a in n.names}
    calls = [n for n in nodes if isinstance(n, ast.Call)]
    return [n for n in calls if not (isinstance(n.func, ast.Name) and n.func.id in ours)]


def _writes(node: ast.Call) -> bool:
    method = node.func.attr if isinstance(node.func, ast.Attribute) else None
    name = method or getattr(node.func, "id", "")
    given = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
    modes = "".join(w for w in given if isinstance(w, str) and set(w) <= set("rwax+bt"))
    opens = name == "open" and bool(set("wax") & set(modes))
    return opens or name in OPENERS or ast.unparse(node.func) == "torch.save"


@pytest.mark.parametrize("where", ["/dev/null", "/proc/self/comm", "."])
def test_no_device_is_replaced(where: str) -> None:
    with pytest.raises(UserError, match="cannot write to"), write_aside(Path(where)):
        pass


@pytest.mark.parametrize("where", ["/dev/null", "."])
def test_a_link_to_a_device_or_folder_is_left_alone(where: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(where)
    for write in (write_text, append_text):
        with pytest.raises(UserError, match="cannot write to"):
            write(link, "x")
    assert link.is_symlink()


def test_a_pipe_does_not_let_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOG)
    with pytest.raises(OSError):
        _append(tmp_path / LOG, b"words")
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(UserError, match="it is a link or no ordinary file"), locked(tmp_path):
        pass


def test_a_second_name_of_a_file_of_yours_is_not_written(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / LOCK).hardlink_to(mine)
    with pytest.raises(UserError, match="it is a link or no ordinary file"), locked(tmp_path):
        pass
    with pytest.raises(UserError, match="it is a link or no ordinary file"):
        append_text(tmp_path / LOCK, "x")
    assert mine.read_text() == "mine"
