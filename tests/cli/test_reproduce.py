"""`dynbench reproduce`: a real run once more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli import QUICK, TINY, call


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reproduce") / "first"
    assert call("run", TINY, *QUICK, "--out", out).exit_code == 0
    return out


def test_a_run_is_repeated_with_the_same_decisions_and_flops(first: Path, tmp_path: Path) -> None:
    result = call("reproduce", first / "report.md", "--out", tmp_path / "second")
    assert result.exit_code == 0, result.output
    stored = json.loads((first / "manifest.json").read_text())["workloads"]["tiny"]
    assert result.stdout.count(stored["stream_hash"][:12]) == 2
    assert result.stdout.count(stored["trace_hashes"]["learned"][:12]) == 2
    assert "DIFFERENT" not in result.stdout
    found = (tmp_path / "second" / "manifest.json").read_text()
    assert json.loads(found)["command"][2:-2] == json.loads((first / "manifest.json").read_text())["command"][2:-2]


def test_other_decisions_or_flops_are_an_error(first: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    changed.mkdir()
    manifest = json.loads((first / "manifest.json").read_text())
    manifest["workloads"]["tiny"]["trace_hashes"]["learned"] = "0" * 64
    (changed / "manifest.json").write_text(json.dumps(manifest))
    lines = [json.loads(line) for line in (first / "cells.jsonl").read_text().splitlines()]
    for cell in lines:
        if cell["cell_id"].endswith("/compaction") and cell["flops"]:
            cell["flops"]["executed"] += 2
    (changed / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in lines))
    result = call("reproduce", first, "--with", changed)
    assert result.exit_code == 1
    different = [line for line in result.stdout.splitlines() if "DIFFERENT" in line]
    assert len(different) == 2 and "decisions of tiny, learned" in different[0]
    assert different[1].startswith("executed FLOPs of")


def test_a_run_against_itself_has_no_time_flagged(first: Path) -> None:
    result = call("reproduce", first, "--with", first)
    assert result.exit_code == 0 and "flagged" not in result.stdout
    said = result.stdout.splitlines()[-1]
    assert re.match(r"(\d+) of \1 exact quantities are the same; (\d+) of \2 times, on the same machine", said)


def test_without_a_manifest_there_is_nothing_to_repeat(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# a report")
    result = call("reproduce", tmp_path / "report.md")
    assert result.exit_code == 2 and "holds no manifest.json" in result.stderr
