"""`dynbench trace`: one profile with everything named, and the page about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.analysis.timeline import nested
from dynbench.experiment import tracing
from dynbench.meters.timeline import read_trace
from tests.cli import TINY, call


def test_a_trace_and_a_page_are_written(tmp_path: Path) -> None:
    result = call("trace", TINY, "--batch", 8, "--batches", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    batch = nested(read_trace(tmp_path / tracing.FILE)).below["batch"]
    assert batch.calls == 2 and batch.below
    page = (tmp_path / "trace.html").read_text(encoding="utf-8")
    assert "compaction in eager PyTorch" in page and '<svg class="flame"' in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_of_a_graph_the_record_is_onnx_runtimes(tmp_path: Path) -> None:
    result = call("trace", TINY, "--graph", "--batch", 8, "--batches", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    names = set(nested(read_trace(tmp_path / tracing.FILE)).below)
    assert any(name.startswith("region ") for name in names) and not list(tmp_path.glob("*profile*"))
    assert "as one ONNX Runtime graph" in (tmp_path / "trace.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "compacting"], "did you mean compaction"),
        (["--strategy", "batch_union"], "this model has no Width"),
        (["--graph", "--engine", "onnxruntime"], "give no --engine with it"),
        (["--batches", "0"], "0 is not in the range"),
        (["--out", "/dev/null/x"], "cannot"),
    ],
)
def test_what_cannot_be_traced_is_one_sentence(options: list[str], message: str, tmp_path: Path) -> None:
    result = call("trace", TINY, "--out", tmp_path / "x", *options)
    assert result.exit_code == 2 and message in result.output
    assert "Traceback" not in result.output


def test_a_trace_that_no_viewer_opens_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MOST_EVENTS", 150)
    result = call("trace", TINY, "--batch", 8, "--batches", 4, "--out", tmp_path)
    assert result.exit_code == 2 and "viewers open about 150" in result.output
    assert not (tmp_path / tracing.FILE).exists()
