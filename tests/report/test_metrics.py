"""Every metric is shown in its own unit: only a share is a percentage, and only a share of items has its error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynbench.report.drawings import Tradeoff
from dynbench.report.results import accuracy_value
from dynbench.store.schema import Accuracy
from tests.report import made_up
from tests.report.test_content import panel, reported

MAE: dict[str, Any] = {"metric": "mean absolute error", "unit": "", "higher_is_better": False, "items": 200}


@pytest.mark.parametrize(
    ("accuracy", "text", "note"),
    [
        (Accuracy(value=0.5, metric="top-1 accuracy", unit="%", items=100), "50.0 % ± 9.8", None),
        (Accuracy(value=0.5, metric="top-1 accuracy", items=100), "50.0 % ± 9.8", None),  # of an older run
        (Accuracy(value=0.5, metric="token accuracy", unit="%", items=100), "50.0 %", None),
        (Accuracy(value=0.5, metric="micro F1", unit="%", items=100), "50.0 %", None),
        (Accuracy(value=0.5, **MAE), "0.5000", "mean absolute error: lower is better"),
        (Accuracy(value=12.5, metric="accuracy of depth", unit="mm", items=9), "12.50 mm", None),
        (
            Accuracy(value=0.25, metric="error rate", unit="%", higher_is_better=False, items=9),
            "25.0 %",
            "error rate: lower is better",
        ),
    ],
)
def test_a_metric_is_shown_in_its_unit(accuracy: Accuracy, text: str, note: str | None) -> None:
    value = accuracy_value(accuracy)
    assert (value.text, value.note) == (text, note)


def test_a_regression_is_compared_in_numbers(tmp_path: Path) -> None:
    by_name = {name: Accuracy(value=value, **MAE) for name, value in (("dynamic", 0.31), ("ResNet-38", 0.25))}
    told = made_up.info(accuracies=by_name)
    found = reported(tmp_path, [*made_up.group(8), *made_up.deployed(8, 1.2)], infos=[told])
    assert "0.310 against 0.250 mean absolute error, lower is better" in found.verdicts[0].sentence
    drawing = panel(found, "accuracy-by-time", "Made-up SkipNet-38, batch 8")
    assert isinstance(drawing, Tradeoff) and drawing.metric == "mean absolute error" and not drawing.higher_is_better


def test_different_metrics_are_not_compared(tmp_path: Path) -> None:
    by_name = {
        "dynamic": Accuracy(value=0.31, **MAE),
        "ResNet-38": Accuracy(value=0.9, metric="top-1 accuracy", unit="%", items=100),
    }
    found = reported(tmp_path, made_up.group(8), infos=[made_up.info(accuracies=by_name)])
    assert "0.310 mean absolute error (ResNet-38 unknown)" in found.verdicts[0].sentence
    assert not isinstance(panel(found, "accuracy-by-time"), Tradeoff)
