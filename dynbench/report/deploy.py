"""What to deploy, and the tournaments that found the fastest way of each network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dynbench.analysis.headline import Choice, by_device, choices
from dynbench.report.columns import COLUMNS
from dynbench.report.tables import Block, Row, Section, make_table
from dynbench.report.values import Value, count, missing, number, ratio, with_interval, words
from dynbench.store.schema import Arm, Candidate, Cell, WorkloadInfo

TEXT = (
    "The network to use at each batch size: a static one where it is faster and at least as accurate, else the dynamic "
    "one where it is faster than the primary baseline or more accurate. Every network is in its fastest way."
)


def deploy_section(infos: Sequence[WorkloadInfo], mine: dict[str, list[Cell]]) -> list[Section]:
    """A line per workload and batch size, and every way that was tried; nothing where no ways were tried.

    Args:
        infos: the workloads.
        mine: cells by workload.
    """
    deployed = {info.name: [c for c in mine[info.name] if c.deployed] for info in infos}
    if not any(deployed.values()):
        return []
    blocks = [_choices(infos, mine)]
    for info in infos:
        tried = [row for cell in sorted(deployed[info.name], key=_order) for row in _tournament(cell)]
        if tried:
            keys = ["network", "batch", "strategy", "form", "engine", "control", "decides", "over_fastest"]
            columns = [COLUMNS[k] for k in keys]
            table = make_table(f"tournament {info.name}", "Ways tried", columns, tried, block="batch")
            blocks.append(Block(f"Ways tried: {info.title}", table=table, folded=True))
    return [Section("deploy", "What to deploy here", TEXT, blocks)]


def choices_section(infos: Sequence[WorkloadInfo], mine: dict[str, list[Cell]]) -> list[Section]:
    """A line per workload and batch size; nothing where no ways were tried."""
    if not any(c.deployed for info in infos for c in mine[info.name]):
        return []
    return [Section("choices", "What to deploy here", TEXT, [_choices(infos, mine)])]


def _choices(infos: Sequence[WorkloadInfo], mine: dict[str, list[Cell]]) -> Block:
    rows = [
        _choice(info, choice)
        for info in infos
        for cells in by_device(mine[info.name])
        for choice in choices(info, cells)
    ]
    if not rows:
        return Block(text=["No network was measured in its fastest way; see Refused and failed."])
    keys = ["workload", "batch", "device", "threads", "use", "strategy", "form", "engine", "control"]
    keys += ["latency_item_ms", "deployed_speedup", "why"]
    return Block(table=make_table("deploy", "What to deploy here", [COLUMNS[k] for k in keys], rows))


def _choice(info: WorkloadInfo, choice: Choice) -> Row:
    cell = choice.cell
    row: Row = {
        "workload": words(info.title),
        "batch": count(cell.batch_size),
        "device": words(cell.device),
        "threads": count(cell.threads),
        "use": words(cell.arm.baseline or "dynamic network"),
        "latency_item_ms": number(None if cell.latency is None else cell.latency.item_ms),
        "deployed_speedup": Value("1 (reference)", 1.0) if choice.speedup is None else with_interval(choice.speedup),
        "why": words(choice.why),
    }
    return row | _way(cell.arm)


def _way(arm: Arm) -> Row:
    return {
        "strategy": words(arm.strategy),
        "form": words(arm.form.replace("+", ", ")),
        "engine": words(arm.engine),
        "control": words(arm.control),
    }


def _tournament(cell: Cell) -> Iterator[Row]:
    for candidate in cell.candidates:
        yield {
            "network": words(cell.arm.baseline or "dynamic network"),
            "batch": count(cell.batch_size),
            "decides": words("itself" if candidate.arm.live else None),
            "over_fastest": _over_fastest(candidate),
        } | _way(candidate.arm)


def _over_fastest(candidate: Candidate) -> Value:
    if candidate.ratio is None:
        return missing(f"not timed: {candidate.reason or 'no reason was stored'}")
    return ratio(candidate.ratio)


def _order(cell: Cell) -> tuple[object, ...]:
    return cell.batch_size, cell.arm.kind == "baseline", not cell.primary
