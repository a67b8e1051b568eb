"""What a doctor says of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli import call


def test_every_finding_has_a_stable_id_and_a_sentence() -> None:
    findings = json.loads(call("doctor", "--seconds", "0.2", "--json").stdout)
    ids = {f["id"] for f in findings}
    assert {"DB-DEVICE-01", "DB-THREADS-01", "DB-LOAD-01", "DB-NOISE-01"} <= ids
    assert all(f["text"] and f["level"] in ("ok", "note", "warning") for f in findings)
    assert all(f["remedy"] for f in findings if f["level"] == "warning")


def test_findings_are_shown_with_what_to_do() -> None:
    text = call("doctor", "--seconds", "0.2").stdout
    assert "DB-NOISE-01" in text and "cannot be seen" in text


def test_a_device_is_looked_at_step_by_step(tmp_path: Path) -> None:
    steps = json.loads(call("doctor", "--target", "this-machine", "--json").stdout)
    assert [(step["name"], step["level"]) for step in steps] == [("python", "ok")]
    board = tmp_path / "board.toml"
    board.write_text('title = "A board"\n[target]\nkind = "local"\npython = "/nowhere/python"\n')
    result = call("doctor", "--target", board)
    assert result.exit_code == 1
    assert "missing" in result.stdout and "what to do" in result.stdout


def test_an_unknown_device_is_one_sentence() -> None:
    result = call("doctor", "--target", "loopbak")
    assert result.exit_code == 2 and "did you mean loopback" in result.output
