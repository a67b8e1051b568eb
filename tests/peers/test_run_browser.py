"""The whole way: `dynbench run --target browser`, a real browser that opens the printed link, and the report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dynbench.deploy.agents.browser import runtime as ort_web
from dynbench.store.run import Run
from tests.cli import TINY
from tests.peers.chromium import PATIENCE_S, PROGRAM, Chromium

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="neither chromium nor google-chrome is installed"),
    pytest.mark.skipif(
        ort_web.find() is None and shutil.which("npm") is None, reason="neither onnxruntime-web nor npm is installed"
    ),
]
BROWSER = "Headless phone (Chrome, headless"


def test_a_browser_is_measured_beside_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dynbench", "run", str(TINY), "--target", "this-machine", "--target", "browser"]
    command += ["--devices", "1", "--time-limit", "0.3", "--out", str(tmp_path / "run")]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=Path.cwd())
    browser, said = None, []
    try:
        assert run.stderr is not None
        for line in run.stderr:
            said.append(line)
            if "http://localhost" in line and browser is None:
                link = line.replace("or ", "").strip()
                browser = Chromium(f"{link}?autostart=1&name=Headless%20phone", tmp_path / "profile")
        assert run.wait(PATIENCE_S) == 0, said
    finally:
        run.kill()
        run.wait()
        if browser is not None:
            browser.kill()
    found = Run.open(tmp_path / "run")
    assert {c.status for c in found.cells} == {"ok"}
    here, *others = dict.fromkeys(c.device for c in found.cells)
    assert here == "this-machine" and others and all(o.startswith(BROWSER) for o in others)
    for cell in found.cells:
        assert cell.startup is not None and (cell.startup.download_ms is None) == (cell.device == here)
        assert cell.latency is not None and found.samples(cell.group_id)["duration_ns"].gt(0).all()
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "headless: no screen, so perhaps a server" in page and "of this machine's" in page
    assert not os.path.exists(tmp_path / "run" / "run.lock")


def test_one_command_opens_a_browser_of_its_own_and_keeps_it_under_load(tmp_path: Path) -> None:
    assert PROGRAM is not None
    mine = tmp_path / "here.toml"
    mine.write_text(
        f'title = "Browser here"\n[target]\nkind = "browser"\nhost = "localhost"\nopen = "{PROGRAM}"\n',
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "dynbench", "run", str(TINY), "--target", "this-machine", "--target", str(mine)]
    command += ["--time-limit", "0.3", "--sustained", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=Path.cwd(), timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    found = Run.open(tmp_path / "run")
    here, *others = dict.fromkeys(c.device for c in found.cells)
    assert here == "this-machine" and [o.startswith("Browser here (Chrome") for o in others] == [True]
    for device in (here, others[0]):
        jobs: Any = found.manifest.devices[device]["jobs"]
        (job,) = jobs.values()
        load = job["sustained"]["arms"]
        assert {"dynamic", "dynamic, decisions known ahead"} <= set(load), load
        assert all(ms > 0 and end <= 2 for points in load.values() for end, ms, _ in points)
        mine_of = [c for c in found.cells if c.device == device]
        known = next(c for c in mine_of if c.arm.without == "deciding")
        dynamic = next(c for c in mine_of if c.arm.kind == "strategy")
        assert known.status == "ok" and known.rounds == dynamic.rounds
        assert dynamic.deployed_waterfall is not None
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "Under load that lasts" in page and "deciding" in page
    assert not list(Path(tempfile.gettempdir()).glob("dynbench-browser-*"))
