"""One process at a time writes a run; a lock that a killed process left is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dynbench.errors import UserError
from dynbench.store.lock import LOCK, locked

HOLD = "import sys, time\nfrom pathlib import Path\nfrom dynbench.store.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(UserError, match=rf"is being written by process {os.getpid()} on"), locked(tmp_path):
            pass
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_another_process_holds_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(UserError, match=f"process {process.pid} "), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_lock_file_is_taken_over_and_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(b"\xff{")
    with locked(tmp_path):
        pass
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / LOCK).symlink_to(elsewhere)
    with pytest.raises(UserError, match="cannot write to"), locked(tmp_path):
        pass
    assert elsewhere.read_text() == "mine"


def test_a_folder_that_was_removed_meanwhile_is_no_error(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with locked(folder):
        (folder / LOCK).unlink()
        folder.rmdir()
