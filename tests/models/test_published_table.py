"""`dynbench cost` reproduces every verified figure from the modules; other figures are shown, not asserted."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from tests.models.published_table import ASSERTED, SHOWN, Figure, cost_of, figures, quantity, variant

KEYS = ("model", "args", "input", "counted_by")
COST = cache(lambda key: cost_of(json.loads(key)))


def ours(figure: Figure) -> float:
    cost: dict[str, Any] = COST(json.dumps({k: figure[k] for k in KEYS if k in figure}))
    return quantity(cost, figure["quantity"])


@pytest.mark.parametrize("figure", figures(), ids=lambda f: f"{f['model']} {variant(f)} {f['quantity']}")
def test_cost_is_what_was_published(figure: Figure) -> None:
    assert figure["status"] in ASSERTED + SHOWN
    assert figure["source"]
    found = ours(figure)
    assert found > 0
    if figure["status"] not in ASSERTED:
        return
    if "digits" in figure:
        assert float(f"{found:.{figure['digits'] - 1}e}") == figure["published"], figure["source"]
    else:
        assert figure["within"] <= 0.01
        assert found == pytest.approx(figure["published"], rel=figure["within"]), figure["source"]
