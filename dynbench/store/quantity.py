"""A quantity of a cell: what it is, what it is not, how it is read from a cell and how it is shown.

A user's own is a `Quantity` in a Python file that a workload names (`quantities = ["my.py:MY"]`). It is evaluated in
the measuring process; its values are stored in `Cell.own`, what it says of itself in `WorkloadInfo.quantities`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from dynbench.errors import UserError
from dynbench.store.schema import Cell, Interval, OwnQuantity
from dynbench.unavailable import Measured, Unavailable

Reading = Interval | Measured | int | None
Kind = Literal["number", "count", "ratio", "interval"]
Place = Literal["speed", "latency", "work", "flops", "sweep", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One quantity of a cell.

    A quantity of your own has `key`, `header`, `definition`, and one of the two functions:

        PADDING = Quantity(
            key="padded_share",
            header="padding",
            unit="%",
            scale=0.01,
            definition="Share of the positions of a batch that hold no token.",
            better="down",
            measure=lambda arm: share_of_padding(arm.batches),
        )

    Attributes:
        key: lower-case name with the unit of the stored number ('energy_item_j'); heads its column in exports.
        header: heads its column in a report.
        definition: what it is, in a sentence or two, for the legend.
        is_not: what a reader might take it for.
        measure: called in the measuring process with the arm, which has `call(start, x)`, `batches`, `items`, `device`
            and `model`, after the arm was timed; returns the number.
        read: takes the number from a finished cell.
        unit: of the numbers shown; '' for pure numbers.
        scale: a stored number is divided by it to be shown: 1e6 shows bytes as MB.
        kind: 'number': to `digits` significant digits. 'count': a whole number, all digits. 'ratio': '1.83x'.
            'interval': a ratio with its confidence interval.
        digits: significant ones.
        name: in a sentence ('executed FLOPs'); default: the header.
        per: what the stored number is counted over: 'item', 'stream' or ''.
        exact: counted, not timed: the same code must give the same number again, and a difference is named.
        depends_on_software: exact only where the software is the same, too; `reproduce` does not hold a run to it.
        better: 'up', 'down', or None where neither is better.
        certain: every measured cell has it, or it does not apply: it is never unavailable.
        places: where a report shows it.
    """

    key: str
    header: str
    definition: str
    is_not: str = ""
    measure: Callable[[Any], float] | None = None
    read: Callable[[Cell], Reading] | None = None
    unit: str = ""
    scale: float = 1.0
    kind: Kind = "number"
    digits: int = 3
    name: str = ""
    per: str = ""
    exact: bool = False
    depends_on_software: bool = False
    better: Literal["up", "down"] | None = None
    certain: bool = False
    places: tuple[Place, ...] = ("work", "not measured")

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.header)

    def of(self, cell: Cell) -> Reading:
        """What a stored cell has of it; None: it does not apply, or was not asked for.

        One that cannot be computed from what is stored, such as a ratio to 0, is unavailable.
        """
        try:
            return None if self.read is None else self.read(cell)
        except ArithmeticError as e:
            known_to_be_there = self.certain or self.kind == "interval"
            return None if known_to_be_there else Unavailable(unavailable=f"it cannot be computed: {e}")


# --- as plain numbers ------------------------------------------------------------------------------------------------


def columns(quantity: Quantity) -> list[str]:
    """The names of a quantity's columns in a flat table: what `flat` gives, in this order."""
    if quantity.kind == "interval":
        stem = quantity.key.removesuffix("_value")
        return [quantity.key, f"{stem}_low", f"{stem}_high", f"{stem}_confidence"]
    return [quantity.key] if quantity.certain else [quantity.key, f"{quantity.key}_unavailable"]


def flat(quantity: Quantity, cell: Cell) -> list[float | int | str | None]:
    """What a cell has of a quantity, column by column: the number, unscaled, and its interval or why there is none."""
    found = quantity.of(cell)
    if quantity.kind == "interval":
        ends = ("value", "low", "high", "confidence")
        return [None if found is None else getattr(found, end) for end in ends]
    assert not isinstance(found, Interval)
    if quantity.certain:
        assert not isinstance(found, Unavailable)
        return [found]
    return [None, found.unavailable] if isinstance(found, Unavailable) else [found, None]


# --- a user's own ----------------------------------------------------------------------------------------------------


def describe(quantity: Quantity) -> OwnQuantity:
    """What a user's own quantity says of itself, for `WorkloadInfo.quantities`."""
    return OwnQuantity.model_validate({name: getattr(quantity, name) for name in OwnQuantity.model_fields})


def check_quantity(found: object, reference: str) -> Quantity:
    """Checks what a reference of a workload leads to.

    Args:
        found: the object.
        reference: 'my.py:MY', for the message.

    Raises:
        UserError: it is no `Quantity`, lacks a function, or has a field of a wrong kind.
    """
    if not isinstance(found, Quantity):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise UserError(f"{reference} is {kind}, not a dynbench.Quantity(key=..., header=..., ...)")
    if (fault := _fault(found)) is not None:
        raise UserError(f"{reference}: {fault}")
    return found


def _fault(quantity: Quantity) -> str | None:
    """What is wrong with a quantity by itself; None: nothing."""
    functions = {"measure": quantity.measure, "read": quantity.read}
    given = {name: function for name, function in functions.items() if function is not None}
    if len(given) != 1:
        have = "both 'measure' and 'read'" if given else "neither 'measure' nor 'read'"
        return f"it has {have}; it must have one of them: measure(arm) -> number, or read(cell) -> number"
    for name, function in given.items():
        if not callable(function):
            return f"{name!r} is of type {type(function).__name__}, not a function"
    try:
        describe(quantity)
    except ValidationError as e:
        first = e.errors()[0]
        message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        return f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {message}"
    return None


def evaluate(quantity: Quantity, cell: Cell, arm: Any) -> Measured:
    """The value of a user's own quantity, in the measuring process.

    Args:
        quantity: checked by `check_quantity`.
        cell: what was measured so far, for `read`.
        arm: as it runs, for `measure`.

    Returns:
        The number; Unavailable, with the reason, where the user's function raises or returns no finite number.
    """
    name = "read" if quantity.measure is None else "measure"
    try:
        found = quantity.of(cell) if quantity.measure is None else quantity.measure(arm)
    except Exception as e:  # noqa: BLE001 (a user's function may raise anything; the cell's other numbers stand)
        return Unavailable(unavailable=f"{name} of {quantity.key} raised {type(e).__name__}: {e}")
    if isinstance(found, Unavailable):
        return found
    try:
        number = math.nan if isinstance(found, str) else float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        return Unavailable(unavailable=f"{name} of {quantity.key} returned {found!r:.60}, not a finite number")
    return number
