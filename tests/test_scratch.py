"""Temporary files and folders: those of dead processes are removed at the next start, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynbench.files import write_text
from dynbench.scratch import _identity, _namespace, make_scratch, scratch

CHECK = "dynbench-check-"
WRITES = """
import sys, time
from pathlib import Path
from dynbench.files import write_aside
with write_aside(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def until_dead(pid: int) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end and _identity(pid) is not None:
        time.sleep(0.02)
    return _identity(pid) is None


def test_what_dead_processes_left_is_removed_at_the_next_start_and_nothing_else(temporary: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = _identity(os.getpid())
    leftover = [
        f"{CHECK}{_namespace()}-{dead.pid}-77-abc",
        f"{CHECK}{_namespace()}-{os.getpid()}-1-abc",
        f"dynbench-forks-{_namespace()}-{dead.pid}-77-abc",  # whatever it is for
        f".dynbench-bundle-{_namespace()}-{dead.pid}-77-abc",
    ]
    others = [
        f"{CHECK}{own}-abc",  # of a process that runs
        f"{CHECK}1-{dead.pid}-77-abc",  # of another container: nobody here can know
        f"{CHECK}abc",
        f"{CHECK}{_namespace()}-x-77-abc",
        "dynbench-forks-abc",
        f"mine-dynbench-check-{_namespace()}-{dead.pid}-77-abc",
    ]
    for name in (*leftover, *others):
        (temporary / name / "deep").mkdir(parents=True)
    kept = temporary.parent / "kept"
    kept.mkdir()
    (temporary / leftover[0] / "link").symlink_to(kept)
    (temporary / f"{leftover[0]}2").symlink_to(kept)
    with scratch("check") as folder:
        assert {p.name for p in temporary.iterdir()} == {*others, folder.name, f"{leftover[0]}2"}
    assert kept.is_dir()


def test_a_process_that_waits_to_be_reaped_is_dead(temporary: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    assert until_dead(child.pid)
    child.wait()


def test_a_folder_of_its_own_is_removed_at_the_end_also_after_an_error(temporary: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch("graph") as folder:
        (folder / "deep").mkdir()
        assert list(temporary.iterdir()) == [folder]
        raise KeyboardInterrupt
    assert list(temporary.iterdir()) == []


def test_folders_of_processes_that_run_stay(temporary: Path) -> None:
    first, second = make_scratch("graph"), make_scratch("bundle", hidden=True)
    assert sorted(temporary.iterdir()) == sorted([first, second]) and second.name.startswith(".dynbench-bundle-")


def test_half_a_file_of_a_killed_writer_is_removed_when_its_folder_is_written_to_again(tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    file.write_text("old")
    with subprocess.Popen([sys.executable, "-c", WRITES, str(file)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        write_text(tmp_path / "other", "1")
        assert len(list(tmp_path.iterdir())) == 3  # it is still being written
        writer.send_signal(signal.SIGKILL)
    assert file.read_text() == "old"
    write_text(tmp_path / "other", "2")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.md": "old", "other": "2"}
