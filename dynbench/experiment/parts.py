"""What a workload is measured with: strategies, engines, load and quantities, those of the user's own included."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynbench.engines import ENGINES, Engine
from dynbench.engines import PROTOCOL as ENGINE_PROTOCOL
from dynbench.errors import UserError
from dynbench.experiment.spec import Options, Workload, part_reference
from dynbench.meters.loads import LOADS, Load
from dynbench.meters.loads import PROTOCOL as LOAD_PROTOCOL
from dynbench.names import STRATEGY_NAMES
from dynbench.parts import choose, load_part
from dynbench.paths import load_object
from dynbench.store.quantity import Quantity, check_quantity
from dynbench.strategies import STRATEGIES, Dense, Strategy

MUST_IMPLEMENT = ("route", "loop", "weights")


@dataclass(frozen=True)
class Parts:
    """The parts by their names, in the order in which they are measured.

    Attributes:
        strategies: classes; every arm has an instance of its own.
        engines: what executes regions.
        load: how batches are issued.
        quantities: of the user's own.
    """

    strategies: dict[str, type[Strategy]]
    engines: dict[str, Engine]
    load: Load
    quantities: list[Quantity]

    @classmethod
    def of(cls, spec: Workload, options: Options) -> Parts:
        """Loads what the options ask for, else what the workload asks for.

        Raises:
            UserError: a part is not there or does not fit its protocol, or an engine cannot be used here.
        """
        asked = options.strategies or spec.run.strategies or STRATEGY_NAMES
        chosen = [load_engine(reference) for reference in options.engines]
        for engine in chosen:
            if why := engine.refuses(options.device):
                raise UserError(f"engine {engine.name!r} cannot be used: {why}")
        return cls(
            {s.name: s for s in (load_strategy(reference, spec.folder) for reference in asked)},
            {engine.name: engine for engine in chosen},
            choose(options.load, LOADS, Path.cwd(), "a load", LOAD_PROTOCOL),
            load_quantities(spec.quantities, spec.folder),
        )

    def engine(self, name: str) -> Engine:
        """An engine by its name: one that was asked for, or one of those that the tournament tries."""
        return self.engines[name] if name in self.engines else ENGINES[name]

    def strategy(self, name: str | None) -> Strategy:
        """A new instance; None: the one that static networks run under."""
        return Dense() if name is None else self.strategies[name]()


def load_engine(reference: str) -> Engine:
    """An engine by its name, or one of the user's own.

    Raises:
        UserError: there is none, or it does not fit the protocol.
    """
    engine: Engine = choose(reference, ENGINES, Path.cwd(), "an engine", ENGINE_PROTOCOL)
    return engine


def load_strategy(reference: str, folder: Path) -> type[Strategy]:
    """A strategy's class by its name, or one of the user's own.

    Raises:
        UserError: there is none, it does not derive from `Strategy`, or it leaves out a method.
    """
    if reference in STRATEGIES:
        return STRATEGIES[reference]
    reference = part_reference("strategy", reference, STRATEGY_NAMES, folder)
    kind = load_object(reference, folder)
    if not (inspect.isclass(kind) and issubclass(kind, Strategy)):
        raise UserError(f"{reference} is not a strategy: it is no class derived from dynbench.strategies.Strategy")
    load_part(reference, folder, "a strategy", ())  # it has a name, and can be made
    if kind.name in STRATEGIES:
        raise UserError(f"{reference} is named {kind.name!r}, as a strategy that comes with dynbench; choose another")
    for method in () if kind.static_twin else MUST_IMPLEMENT:
        if getattr(kind, method) is getattr(Strategy, method):
            raise UserError(f"{reference} is not a strategy: it does not implement {method!r}")
    return kind


def load_quantities(references: Sequence[str], folder: Path) -> list[Quantity]:
    """Quantities of the user's own, each once.

    Raises:
        UserError: one is not there, is no quantity, or has the key of another one.
    """
    found: dict[str, Quantity] = {}
    for reference in references:
        quantity = check_quantity(load_object(reference, folder), reference)
        if found.setdefault(quantity.key, quantity) is not quantity:
            raise UserError(f"{reference}: its key {quantity.key!r} is that of another quantity of the workload")
    return list(found.values())
