"""Published costs beside what `dynbench cost` counts: `python -m tests.models.published_table` prints the table.

Each `published/MODEL.toml` holds rows of one model. Verified and computed figures are asserted, to the digits that they
were published to where a row says how many; what is recalled, second-hand or reconstructed is shown only.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from tabulate import tabulate
from torch import Tensor, nn

from dynbench.cli import main
from dynbench.models.msdnet import msdnet

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


def counted_by_authors(args: dict[str, Any], shape: list[int]) -> dict[str, Any]:
    """The exits of an MSDNet as op_counter.py of kalviny/MSDNet-PyTorch counts: ReLU, pooling and bias too."""
    net = msdnet(**args).eval()
    operations, exits = 0, []

    def count(module: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> None:
        nonlocal operations
        if isinstance(module, nn.Conv2d):
            operations += module.weight.numel() * y.shape[2] * y.shape[3]
        elif isinstance(module, nn.ReLU):
            operations += given[0].numel()
        elif isinstance(module, nn.Linear):  # after the pooling of a map of 2 x 2
            operations += 4 * module.in_features + module.weight.numel() + module.bias.numel()
            exits.append(operations)

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ReLU, nn.Linear)):
            module.register_forward_hook(count)
    state = {"x": torch.zeros(1, *shape)}
    with torch.no_grad():
        for stage, head in zip(net.grid.stages(net.grid.plan(lazy=False)), net.heads, strict=True):
            state = stage(state)
            head(state)
    return {"exits": exits}


def cost_of(figure: Figure) -> dict[str, Any]:
    """The cost that a row is set beside: ours, or by the rule of the authors' own counter."""
    args, shape = figure.get("args", {}), figure.get("input")
    if figure.get("counted_by") == "authors":
        return counted_by_authors(args, shape or [])
    return counted(figure["model"], args, shape)


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
    cost = cache(lambda key: cost_of(json.loads(key)))
    lines = []
    for f in rows:
        key = json.dumps({k: f[k] for k in ("model", "args", "input", "counted_by") if k in f})
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
