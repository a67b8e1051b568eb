"""The whole way: `dynbench run --target browser`, a real browser that opens the printed link, and the report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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
