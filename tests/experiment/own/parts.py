"""Parts of a user's own, each in the way that docs/ describes: a strategy, an engine, a load, a target, quantities."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynbench import Quantity
from dynbench.dynamic.regions import Region
from dynbench.launch import LocalLauncher, Process
from dynbench.meters.latency import Timing, time_batches
from dynbench.strategies import Compaction, Strategy


class Mine(Compaction):
    """Compaction by another name."""

    name = "mine"


class Half(Strategy):
    """Leaves out two methods."""

    name = "half"

    def route(self, ex: Any, point: Any, x: Any, chosen: Any, weights: Any) -> Any:
        return x


class Taken(Compaction):
    """Has the name of another one."""

    name = "masking"


class Counting:
    """An engine that calls every region as it is, from a function of its own."""

    name = "counting"
    as_written = False

    def facts(self) -> dict[str, object]:
        return {"version": 1}

    def refuses(self, device: str) -> str | None:
        return None

    def prepare(self, region: Region) -> Callable[..., Any]:
        forward = region.module.forward
        return lambda *args: forward(*args)


class NoPrepare:
    """An engine that lacks a method."""

    name = "no_prepare"
    as_written = False

    def facts(self) -> dict[str, object]:
        return {}

    def refuses(self, device: str) -> str | None:
        return None


class Broken(Counting):
    """An engine that answers otherwise."""

    name = "broken"

    def prepare(self, region: Region) -> Callable[..., Any]:
        forward = region.module.forward
        return lambda *args: forward(*args) if region.leaf else forward(*args) * 1.5


class Backwards:
    """A load that issues the last batch first."""

    name = "backwards"

    def issue(self, call: Callable[..., Any], batches: Sequence[tuple[Any, ...]], device: Any) -> list[Timing]:
        return time_batches(call, batches[::-1], device)[::-1]


class Here(LocalLauncher):
    """A target that is this machine, and leaves a file to show that it was used."""

    name = "here"

    def start(self, module: str, *, environment: Mapping[str, str], folder: Path | None = None) -> Process:
        (Path(__file__).parent / "started").touch()
        return super().start(module, environment=environment, folder=folder)


ITEMS_PER_CALL = Quantity(
    key="items_per_call",
    header="items per call",
    definition="Items of a batch.",
    kind="count",
    exact=True,
    measure=lambda arm: len(arm.batches[0][1]),
)
HALF_MS = Quantity(
    key="half_item_ms",
    header="half the time",
    unit="ms/item",
    definition="Half the time of an item.",
    better="down",
    read=lambda cell: cell.latency.item_ms / 2,
)
NOTHING = 3
