"""A disk that fills up while a run is measured: a real one, small. Skipped where a file system cannot be mounted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynbench.store.run import Run
from tests.cli import QUICK, TINY, call


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_run_on_a_disk_that_is_full_says_so_and_goes_on_when_there_is_room(disk: Path) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (16 * 1024 - 104) * 1024)
    full = call("run", TINY, *QUICK, "--out", disk / "run")
    assert full.exit_code == 2 and full.stderr.splitlines()[-1].endswith("No space left on device")
    assert "Traceback" not in full.stderr
    ballast.unlink()
    before = Run.open(disk / "run").cells
    done = call("run", "--resume", disk / "run")
    after = {c.cell_id: c for c in Run.open(disk / "run").cells}
    assert done.exit_code == 0 and Run.open(disk / "run").manifest.status == "complete"
    groups = {g: {c.cell_id for c in after.values() if c.group_id == g} for g in {c.group_id for c in before}}
    whole = [g for g, cells in groups.items() if cells <= {c.cell_id for c in before}]  # others are measured again
    assert whole and all(after[c.cell_id] == c for c in before if c.group_id in whole)
    assert {c.arm.name for c in after.values() if c.status == "ok"} >= {"compaction", "plain"}
