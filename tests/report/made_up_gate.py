"""A made-up check."""

from __future__ import annotations

from typing import Any

from dynbench.store.gate import CellCheck, ExactChange, Gate

ANSWERS = ExactChange(what="answers", base="", head="x", regression=True, text="answers differ: by up to 0.3")
LESS = ExactChange(what="executed FLOPs", base=9.0, head=8.0, regression=False, text="executed FLOPs: 9 -> 8 (-11.1 %)")


def cell(outcome: str = "SAME", change: float = 1.0, *exact: ExactChange) -> CellCheck:
    return CellCheck.model_validate(
        {
            "name": "compaction, batch 32",
            "outcome": outcome,
            "reason": "because",
            "change": {"value": change, "low": change - 0.01, "high": change + 0.01},
            "again": {"value": 1.0, "low": 0.99, "high": 1.01},
            "resolution": 0.012,
            "confirmed": outcome == "SLOWER",
            "base_ms": 10.0,
            "head_ms": 10.0 * change,
            "laps": 50,
            "processes": 5,
            "exact": list(exact),
        }
    )


def gate(*cells: CellCheck, **changes: Any) -> Gate:
    told = {
        "workload": "my_net",
        "title": "My network",
        "base": "origin/main (4f2a91c0)",
        "head": "77aa00bb",
        "machine": "a CPU",
        "device": "cpu",
        "threads": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 41.3,
        "matters": 0.03,
        "cells": cells,
        **changes,
    }
    return Gate.model_validate(told)
