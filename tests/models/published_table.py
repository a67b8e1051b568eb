"""Published costs beside what `dynbench cost` counts: `python -m tests.models.published_table` prints the table.

Each `published/MODEL.toml` holds rows of one model. Verified and computed figures are asserted; what is recalled,
second-hand or reconstructed is shown only.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from tabulate import tabulate

from dynbench.cli import main

ASSERTED, SHOWN = ("verified", "computed"), ("second-hand", "recalled", "reconstructed")
Figure = dict[str, Any]


def figures() -> list[Figure]:
    """All rows of all files, in order."""
    files = sorted((Path(__file__).parent / "published").glob("*.toml"))
    return [figure for file in files for figure in tomllib.loads(file.read_text(encoding="utf-8"))["figure"]]


def counted(model: str, args: dict[str, Any], shape: list[int] | None) -> dict[str, Any]:
    """What `dynbench cost MODEL --set .. --input .. --json` prints."""
    command = ["cost", model, "--json", *(part for k, v in args.items() for part in ("--set", f"{k}={v}"))]
    if shape is not None:
        command += ["--input", "x".join(map(str, shape))]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def quantity(cost: dict[str, Any], name: str) -> float:
    """`params`, `macs`, `exits[1]` or `points.NAME.region_macs` of a cost."""
    if name.startswith("exits["):
        return float(cost["exits"][int(name.removeprefix("exits[").removesuffix("]"))])
    if name.startswith("points."):
        point, key = name.removeprefix("points.").rsplit(".", 1)
        return float(next(p[key] for p in cost["decision_points"] if p["name"] == point))
    return float(cost[name])


def variant(figure: Figure) -> str:
    """The arguments of the model and its input, in a word."""
    said = ", ".join(f"{k}={v}" for k, v in figure.get("args", {}).items())
    shape = "x".join(map(str, figure.get("input", [])))
    return " on ".join(filter(None, [said or "as it is", shape]))


def table(rows: list[Figure]) -> str:
    """Model, variant, quantity, published, ours, how far apart, status, source; of rows of one model."""
    cost = cache(lambda key: counted(*json.loads(key)))
    lines = []
    for f in rows:
        key = json.dumps([f["model"], f.get("args", {}), f.get("input")])
        ours = quantity(cost(key), f["quantity"])
        apart = f"{ours / f['published'] - 1:+.2%}"
        lines.append(
            [f["model"], variant(f), f["quantity"], f"{f['published']:,.0f}", f"{ours:,.0f}", apart, f["status"]]
            + [f["source"]]
        )
    headers = ["model", "variant", "quantity", "published", "ours", "apart", "status", "source"]
    return tabulate(lines, headers, disable_numparse=True)


if __name__ == "__main__":
    for _, rows in groupby(figures(), lambda f: f["model"]):  # each as soon as it is counted
        print(table(list(rows)), end="\n\n", flush=True)
