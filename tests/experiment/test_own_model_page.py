"""The page on a user's own models works when it is followed literally."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.experiment.accuracy import accuracies
from dynbench.experiment.build import prepare
from dynbench.experiment.spec import TASKS, Options, load_spec
from dynbench.meters.accuracy import KINDS
from tests.project.pages import ROOT, blocks, file_name, try_out

PAGE = ROOT / "docs" / "your-own-model.md"


def test_the_page_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(PAGE):
        try_out(block, tmp_path)
    p = prepare(load_spec("encoder.toml"), Options(batch_sizes=[8]))
    assert accuracies(p)["dynamic"].metric == "top-1 accuracy"
    own = p.spec.task.model_copy(update={"kind": "metric.py:recall"})
    p.spec = p.spec.model_copy(update={"task": own})
    assert accuracies(p)["dynamic"].metric == "recall"


def test_everything_on_the_page_is_tried_and_every_kind_is_there() -> None:
    assert [file_name(block) for block in blocks(PAGE)] == ["encoder.py", "encoder.toml", None, "metric.py"]
    text = PAGE.read_text(encoding="utf-8")
    assert set(TASKS) == {*KINDS, "none"} and not [kind for kind in TASKS if f"| `{kind}` |" not in text]
