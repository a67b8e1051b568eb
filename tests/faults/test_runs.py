"""`dynbench run` with networks and names that nobody would wish for."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dynbench.report.content import status_of
from dynbench.store.lock import LOCK, locked
from dynbench.store.run import LOG, Run
from tests.cli import call

QUICK = ("--time-limit", "0.2", "--precision", "50", "--batch", "8", "--as-written", "--decisions", "learned")
SOON_S = 60.0


def workload(folder: Path, how: str = "", *, name: str = "net", title: str = "A net", model: str = "make") -> Path:
    shutil.copy(Path(__file__).parent / "networks.py", folder / "net.py")
    arguments = f"model_args = {{ how = {how!r}, flag = {str(folder / 'flag')!r} }}\n" if how else ""
    file = folder / "net.toml"
    file.write_text(
        f'schema = 1\nname = "{name}"\ntitle = {title!r}\nmodel = "net.py:{model}"\n{arguments}'
        'inputs = { name = "net.py:items" }\n[run]\naccuracy_items = 0\n',
        encoding="utf-8",
    )
    return file


def baseline(file: Path, how: str) -> None:
    with file.open("a") as text:
        text.write(
            '[[baselines]]\nname = "plain"\nprimary = true\nmodel = "net.py:plain"\n'
            '[[baselines]]\nname = "other"\nmodel = "net.py:other"\n'
            f"model_args = {{ how = {how!r}, flag = {str(file.parent / 'flag')!r} }}\n"
        )


@pytest.mark.parametrize("how", ["exit", "die"])
def test_a_run_in_which_nothing_could_be_measured_fails(how: str, tmp_path: Path) -> None:
    result = call("run", workload(tmp_path, how), *QUICK, "--strategy", "masking", "--out", tmp_path / "run")
    assert result.exit_code in (1, 2) and "Traceback" not in result.output


def test_a_network_without_decision_points_and_one_of_the_same_name(tmp_path: Path) -> None:
    file = workload(tmp_path, model="plain")
    assert call("run", file, *QUICK, "--out", tmp_path / "run").exit_code in (0, 2)
    other = tmp_path / "other.toml"
    shutil.copy(file, other)
    result = call("run", file, other, *QUICK, "--out", tmp_path / "two")
    assert result.exit_code == 2 and "both named 'net'" in result.output


def test_what_a_model_prints_is_in_a_log_that_the_report_names(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call("run", workload(tmp_path, "print"), *QUICK, "--strategy", "masking", "--out", out)
    assert result.exit_code == 0 and "here I am" not in result.output
    assert "here I am" in (out / LOG).read_text()
    assert LOG in (out / "report.md").read_text()


def test_a_model_that_asks_for_input_gets_none(tmp_path: Path) -> None:
    file = workload(tmp_path)
    baseline(file, "input")
    call("run", file, *QUICK, "--strategy", "masking", "--out", tmp_path / "run")
    cells = {c.arm.name: c for c in Run.open(tmp_path / "run").cells}
    assert cells["other"].status == "failed" and "EOF" in str(cells["other"].reason)
    assert cells["masking"].status == "ok"


def test_what_the_system_killed_is_measured_again_when_asked_for(tmp_path: Path) -> None:
    file, out = workload(tmp_path), tmp_path / "run"
    baseline(file, "killed once")
    arguments = ("run", file, *QUICK, "--strategy", "masking", "--out", out)
    call(*arguments)
    cells = {c.arm.name: c for c in Run.open(out).cells}
    assert cells["other"].status == "failed" and "from outside" in str(cells["other"].reason)
    assert call("run", "--resume", out).exit_code == 0
    assert {c.arm.name: c.status for c in Run.open(out).cells}["other"] == "failed"
    assert call("run", "--resume", out, "--retry-failed").exit_code == 0
    assert {c.arm.name: c.status for c in Run.open(out).cells}["other"] == "ok"


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    file = workload(tmp_path)
    assert call("run", file, *QUICK, "--strategy", "masking", "--out", out).exit_code == 0
    before = (out / "cells.jsonl").read_bytes()
    with locked(out):
        result = call("run", "--resume", out)
    assert result.exit_code == 2 and "is being written by process" in result.output
    assert (out / "cells.jsonl").read_bytes() == before
    assert not (out / LOCK).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    file = workload(tmp_path)
    baseline(file, "spin")
    command = [sys.executable, "-m", "dynbench", "run", str(file), *QUICK, "--strategy", "masking", "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "run")], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + SOON_S
    while not (tmp_path / "flag").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "flag").exists()
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(number)
    said = process.communicate(timeout=SOON_S)[1]
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    assert "Traceback" not in said
    run = Run.open(tmp_path / "run")
    assert run.manifest.status == ("interrupted" if number == signal.SIGTERM else "running")
    expected = "This run was interrupted" if number == signal.SIGTERM else "This run was cut off"
    assert str(status_of(run)).startswith(expected)
    with locked(run.path):
        assert ("had not ended" in str(status_of(run))) == (number == signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=SOON_S)
    assert len(gone) == len(children) and not alive


HOSTILE = "x[/b]<script>alert(1)</script>|`&amp;\x1b[31m]]>\u202e"


def test_a_hostile_title_is_text_everywhere(tmp_path: Path) -> None:
    out = tmp_path / "run"
    file = workload(tmp_path)
    escaped = HOSTILE.encode("unicode_escape").decode().replace("\\x1b", "\\u001b")
    file.write_text(re.sub(r"title = .*", lambda _: f'title = "{escaped}"', file.read_text()), encoding="utf-8")
    result = call("run", file, *QUICK, "--strategy", "masking", "--out", out)
    assert result.exit_code == 0, result.output
    for text in (result.output, *(f.read_text(encoding="utf-8") for f in [out / "report.md", out / "report.html"])):
        assert "\x1b" not in text and "\u202e" not in text
    outside_code = re.sub(r"```.*?```", "", (out / "report.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    pages = [file.read_text(encoding="utf-8") for file in (out / "report.html", *out.rglob("*.svg"))]
    assert all("<script>alert" not in text for text in [outside_code, *pages])


def test_a_run_says_nothing_or_one_document(tmp_path: Path) -> None:
    file = workload(tmp_path)
    arguments = ("run", file, *QUICK, "--strategy", "masking", "--out")
    quiet = call(*arguments, tmp_path / "a", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, f"{tmp_path / 'a'}\n")
    said = json.loads(call(*arguments, tmp_path / "b", "--json").stdout)
    assert said["run"] == str(tmp_path / "b") and len(said["verdicts"]) == 1 and not said["failed"]
    assert all(Path(report).is_file() for report in said["reports"])
