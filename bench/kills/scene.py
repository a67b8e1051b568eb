"""Where trials happen: folders that are prepared once, and the commands that are killed there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.kills import leftovers
from dynbench.store.history import record
from dynbench.store.run import Run, cell_lines, samples_file

HERE = Path(__file__).parent
MARK = "DYNBENCH_KILLS"
RUN = (
    *("net.toml", "--as-written", "--controls", "none", "--strategy", "masking"),
    *("--time-limit", "0.3", "--batch", "1"),
)
TRAIN = ("train", "net.toml", "--out", "trained", "--quiet")
CHECK = (
    *("check", "repo/net.toml", "--base", "main", "--time", "5", "--batch", "1", "--strategy", "masking"),
    *("--history", "history.sqlite", "--json", "gate.json", "--markdown", "gate.md"),
)
LONGEST_S = 600.0  # of an undisturbed command
TEMPORARY, CACHE = "TMPDIR/", "cache/"
SETTLE_S = 20.0  # until processes that know that they are to end have ended


@dataclass(frozen=True)
class Kind:
    """A command to be killed.

    Attributes:
        name: as in the table.
        needs: files and folders of the scene that a trial gets copies of.
        first: what is killed.
        again: the next start, given the trial's folder.
        good: exit codes of the next start with which it did what it is for.
        share: of the trials, relative to the other kinds.
    """

    name: str
    needs: dict[str, str]
    first: tuple[str, ...]
    again: Callable[[Path], tuple[str, ...]]
    good: tuple[int, ...] = (0,)
    share: float = 1.0


def _run_again(folder: Path) -> tuple[str, ...]:
    begun = (folder / "out" / "manifest.json").exists()
    return ("run", "--resume", "out") if begun else ("run", *RUN, "--out", "out")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("run", {}, ("run", *RUN, "--out", "out"), _run_again, share=14),
        Kind(
            "run --resume", {"half": "out"}, ("run", "--resume", "out"), lambda _: ("run", "--resume", "out"), share=10
        ),
        Kind("report", {"done": "out"}, ("report", "out"), lambda _: ("report", "out"), share=24),
        Kind(
            "history add",
            {"done": "out", "history.sqlite": "history.sqlite"},
            ("history", "add", "out", "--db", "history.sqlite"),
            lambda _: ("history", "add", "out", "--db", "history.sqlite"),
            share=40,
        ),
        Kind("train", {}, TRAIN, lambda _: (*TRAIN, "--resume"), share=8),
        # Nothing changed in the repository: 0 is "the same", 3 "could not tell" in so little time.
        Kind("check", {"repo": "repo"}, CHECK, lambda _: CHECK, (0, 3), share=8),
    )
}


class Scene:
    """Folders for trials.

    Args:
        root: holds all of it.

    Attributes:
        trial: the folder in which commands run; made anew for each trial.
        seconds: how long each kind takes undisturbed, by its name: the last time that it was not disturbed.
        names: what is found after each kind ran undisturbed, by its name: torch and others keep things, too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.trial, self._temporary, self._cache = (self.root / name for name in ("trial", "tmp", "cache"))
        self._facts = self.root / "undisturbed.json"
        self.seconds: dict[str, float] = {}
        self.names: dict[str, list[str]] = {}

    @property
    def mark(self) -> str:
        """Which every process of a trial has in its environment."""
        return f"{MARK}={self.root}"

    @property
    def environment(self) -> dict[str, str]:
        """Of every command: one thread, and nothing written outside of the scene."""
        own = {
            MARK: str(self.root),
            "PYTHONPATH": str(HERE.parents[1]),
            "TMPDIR": str(self._temporary),
            "DYNBENCH_CACHE": str(self._cache / "dynbench"),
            "XDG_CACHE_HOME": str(self._cache),
            "MPLCONFIGDIR": str(self._cache / "matplotlib"),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        left_out = ("GITHUB_STEP_SUMMARY", "DYNBENCH_HISTORY")
        return {name: value for name, value in os.environ.items() if name not in left_out} | own

    def prepare(self, kinds: list[Kind], *, warm: bool = True) -> None:
        """Makes what trials need, once, by commands that nobody disturbs; measures how long each takes.

        Args:
            kinds: of the trials.
            warm: the first run, which fills the caches, is not the one whose time counts.
        """
        leftovers.end_processes(self.mark)
        self.root.mkdir(parents=True, exist_ok=True)
        if self._facts.exists():
            facts = json.loads(self._facts.read_text(encoding="utf-8"))
            self.seconds, self.names = facts["seconds"], facts["names"]
        if "run" not in self.seconds:
            for _ in range(1 + warm):
                self.reset(KINDS["run"])
                self._undisturbed(KINDS["run"])
            shutil.rmtree(self.root / "done", ignore_errors=True)
            shutil.copytree(self.trial / "out", self.root / "done")
            self._make_half()
            self._make_history()
            self._make_repository()
        for kind in kinds:
            if kind.name not in self.seconds:
                self.reset(kind)
                self._undisturbed(kind)
        self._facts.write_text(json.dumps({"seconds": self.seconds, "names": self.names}, indent=1), encoding="utf-8")

    def reset(self, kind: Kind) -> None:
        """The trial's folder as it is before a command of this kind."""
        for folder in (self.trial, self._temporary):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for name in ("net.py", "net.toml"):
            shutil.copy(HERE / name, self.trial / name)
        for source, target in kind.needs.items():
            copy = shutil.copytree if (self.root / source).is_dir() else shutil.copy
            copy(self.root / source, self.trial / target)

    def start(self, arguments: tuple[str, ...], said: Path) -> subprocess.Popen[bytes]:
        """Starts `dynbench` in the trial's folder, as leader of a process group; what it says goes to a file."""
        with said.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "dynbench", *arguments],
                cwd=self.trial,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def found(self) -> list[str]:
        """What is in the trial's folder, in the cache and in the folder for temporary files."""
        folders = {"": self.trial, CACHE: self._cache, TEMPORARY: self._temporary}
        return [prefix + name for prefix, folder in folders.items() for name in leftovers.names(folder)]

    def _undisturbed(self, kind: Kind) -> None:
        said = self.root / "said.txt"
        begun = time.monotonic()
        code = self.start(kind.first, said).wait(LONGEST_S)
        self.seconds[kind.name] = time.monotonic() - begun
        if code not in kind.good:
            raise SystemExit(f"{kind.name}, undisturbed, ended with {code}: {said.read_text(errors='replace')[-1000:]}")
        leftovers.wait_for_processes(self.mark, SETTLE_S)
        self.names[kind.name] = self.found()

    def _make_half(self) -> None:
        """The finished run as it was when its first group was done."""
        half = self.root / "half"
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(self.root / "done", half)
        cells = Run.open(half).cells
        first = cells[0].group_id
        if all(cell.group_id == first for cell in cells):
            raise SystemExit("a run of two groups is needed; this one has one")
        lines, _ = cell_lines(half)
        kept = [line for line, cell in zip(lines, cells, strict=True) if cell.group_id == first]
        (half / "cells.jsonl").write_bytes(b"".join(line + b"\n" for line in kept))
        for group in {cell.group_id for cell in cells} - {first}:
            samples_file(half, group).unlink()
        for name in ("report.html", "report.md"):
            (half / name).unlink()
        shutil.rmtree(half / "figures")

    def _make_history(self) -> None:
        """A database that has another run already: the same one, as if it had been begun earlier."""
        earlier, database = self.root / "earlier", self.root / "history.sqlite"
        shutil.rmtree(earlier, ignore_errors=True)
        shutil.copytree(self.root / "done", earlier)
        manifest = json.loads((earlier / "manifest.json").read_text(encoding="utf-8"))
        text = json.dumps(manifest | {"started": "2026-01-01T00:00:00+00:00"})
        (earlier / "manifest.json").write_text(text, encoding="utf-8")
        database.unlink(missing_ok=True)
        record(earlier, str(database))

    def _make_repository(self) -> None:
        repository = self.root / "repo"
        shutil.rmtree(repository, ignore_errors=True)
        repository.mkdir()
        for name in ("net.py", "net.toml"):
            shutil.copy(HERE / name, repository / name)
        own = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
        for arguments in (("init", "-q", "-b", "main"), ("add", "-A"), (*own, "commit", "-q", "-m", "first")):
            subprocess.run(["git", *arguments], cwd=repository, check=True)
