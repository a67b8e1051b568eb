"""Tables of older dynbench in the form of today. The only place that knows what they looked like.

Schema 1 and 2 said what ran in a cell by `arm` (only its kind), `name`, `engine` and `form`, and `cell_id` left out the
latter two; samples named arms in a third way. What else schema 3 says of a cell followed from these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from dynbench.store.schema import SCHEMA_VERSION, Arm, Cell

NAMED_BY_ARM = 3  # the first schema whose cells and samples say what ran by an `Arm`
LIVE = ", live decisions"  # what the name of a control ended with
AGAIN = ", again"  # what the primary baseline's name in the samples ended with where it was timed a second time


class _Named(BaseModel):
    """What ran in a cell, as schema 1 and 2 said it."""

    model_config = ConfigDict(strict=True, extra="ignore")

    arm: Literal["strategy", "baseline", "control"]
    name: str
    engine: str = "eager"
    form: str = "plain"


def cell(table: dict[str, Any]) -> dict[str, Any]:
    """A cell of an older schema in the form of today.

    Raises:
        ValueError: it does not say what ran in it.
    """
    if _names_arms(table):
        return {**table, "schema_version": SCHEMA_VERSION}
    arm, rest = _split(table)
    facts = {
        "static_twin": "dense" in (arm.strategy, arm.baseline),  # also the default name of a baseline
        "item_by_item": arm.strategy == "per_sample",
    }
    if isinstance(decisions := rest.get("decisions"), dict):  # else validation names it
        rest["decisions"] = {**decisions, "sweep": _is_sweep(decisions)}
    address = {"cell_id": f"{rest.get('group_id')}/{arm.key}", "arm": arm.model_dump()}
    return {**rest, "schema_version": SCHEMA_VERSION, **address, **facts}


def manifest(table: dict[str, Any]) -> dict[str, Any]:
    """A manifest of an older schema in the form of today."""
    found = {**table, "schema_version": SCHEMA_VERSION}
    if _names_arms(table):
        return found
    if isinstance(workloads := table.get("workloads"), dict):  # else validation names it
        found["workloads"] = {name: _with_actions(info) for name, info in workloads.items()}
    return found


def _names_arms(table: object) -> bool:
    """Whether a cell or manifest is of a schema whose cells have arms; what is no table is told by validation."""
    return isinstance(table, dict) and table.get("schema_version", 1) >= NAMED_BY_ARM


def history_key(table: dict[str, Any]) -> dict[str, Any]:
    """A key of a history of version 1 or 2 as one of version 3.

    Raises:
        ValueError: it does not say what ran.
    """
    arm, rest = _split(table)
    return {**rest, "arm": arm.model_dump()}


def sample_arms(cells: Iterable[Cell]) -> dict[str, str]:
    """`Arm.key` by the name that samples of schema 1 and 2 have, of the cells of one group.

    Raises:
        ValueError: two arms have the same name in the samples, so that they cannot be told apart.
    """
    found: dict[str, str] = {}
    for name, arm in (pair for c in cells for pair in _in_samples(c)):
        if name in found:
            raise ValueError(f"two arms are named {name!r}")
        found[name] = arm.key
    return found


def _in_samples(cell: Cell) -> Iterator[tuple[str, Arm]]:
    arm = cell.arm
    if arm.kind == "strategy":
        yield str(arm.strategy), arm
    elif arm.kind == "control":
        yield f"{arm.strategy}{LIVE}", arm
    else:
        yield f"baseline:{arm.baseline}", arm
        if cell.primary:
            yield f"baseline:{arm.baseline}{AGAIN}", arm.model_copy(update={"again": True})


def _split(table: dict[str, Any]) -> tuple[Arm, dict[str, Any]]:
    """What ran, and the rest of the table."""
    named = _Named.model_validate(table)
    rest = {k: v for k, v in table.items() if k not in _Named.model_fields}
    way = {"engine": named.engine, "form": named.form}
    if named.arm == "baseline":
        return Arm(kind="baseline", baseline=named.name, **way), rest
    if named.arm == "strategy":
        return Arm(kind="strategy", strategy=named.name, **way), rest
    if not named.name.endswith(LIVE):
        raise ValueError(f"name: a control's name ends with {LIVE!r}, this one is {named.name!r}")
    return Arm(kind="control", strategy=named.name.removesuffix(LIVE), live=True, **way), rest


def _with_actions(info: Any) -> Any:
    """A workload's table with what its decision points do, as far as their kinds and the model's arguments say it."""
    if not isinstance(info, dict) or not isinstance(points := info.get("points", {}), dict):
        return info  # validation names it
    said = {
        "Route": _experts(info),
        "Program": "composes its modules for each item",
        "Skip": "skips",
        "Exits": "leaves early",
        "Loop": "leaves early",
    }
    actions = [action for kind, action in said.items() if kind in points]
    if set(points) == {"Choice"}:
        actions = ["decides what to look at"]
    return {**info, "actions": list(dict.fromkeys(actions))}


def _experts(info: dict[str, Any]) -> str:
    arguments = info.get("model_args")
    k, experts = (arguments.get(n) for n in ("k", "experts")) if isinstance(arguments, dict) else (None, None)
    item = "token" if any(word in str(info.get("inputs")).lower() for word in ("token", "byte", "text")) else "item"
    return f"uses {k} of {experts} experts per {item}" if k and experts else f"uses some of its experts per {item}"


def _is_sweep(decisions: dict[str, Any]) -> bool:
    """Whether they are those of the keep-rate sweep: only it asked for a keep-rate."""
    requested = decisions.get("requested")
    return decisions.get("source") == "synthetic" and isinstance(requested, dict) and "keep_rate" in requested
