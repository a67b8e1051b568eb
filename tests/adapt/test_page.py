"""docs/adapt.md works when it is followed literally."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dynbench.adapt import transformers
from dynbench.dynamic import points
from dynbench.paths import load_function
from tests.project.pages import ROOT, blocks, try_out

PAGE = ROOT / "docs" / "adapt.md"


def test_the_page_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(PAGE):
        try_out(block, tmp_path)
    both = load_function("adapted.py:with_both", tmp_path)()
    assert list(points(both)) == ["exit", "group1_layer1", "group2_layer1", "group3_layer1"]


def test_the_page_names_every_function() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("exits_at", "skip_blocks", "route_experts", "confident"):
        assert f"{name}(" in text
    for name in ("mixture_of_experts", "early_exit", "causal_lm"):
        assert f"`{name}(" in text and callable(getattr(transformers, name))


def test_the_command_line_does_not_import_it() -> None:
    program = "import sys, dynbench.cli; sys.exit('dynbench.adapt' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
