"""A check against a file instead of a base: through a static network that is measured now and was measured then.

History of `VERSION`:
    1  first form.
    2  processes keep freed memory instead of returning it to the system.
    3  static networks are called in the same way as dynamic ones, so ratios of small networks changed; a cell says what
       ran in it by its `arm`.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from dynbench.analysis.statistics import quotient
from dynbench.devices.cpu import cpu_model
from dynbench.errors import UserError
from dynbench.experiment.spec import Options
from dynbench.files import write_text
from dynbench.gate.cells import GateCell
from dynbench.gate.trees import CannotTell
from dynbench.reading import ordinary
from dynbench.store.gate import Gate
from dynbench.store.quantities import QUANTITIES
from dynbench.store.schema import Arm, Interval, Record

VERSION = 3
MAX_BYTES = 2**24
MAX_DIGITS = 20  # of a whole number
SHOWN = 60  # characters of a value or a key that is not accepted
DECISIONS = "decisions"
HASH = "[0-9a-f]{16,64}"
COUNTED = {quantity.name for quantity in QUANTITIES}  # a user's own may fall below 0

Ratio = Annotated[float, Field(gt=1e-6, lt=1e6, allow_inf_nan=False)]
Hash = Annotated[str, Field(pattern=f"^{HASH}$")]
Count = Annotated[int, Field(ge=1, le=2**31)]


class StoredRatio(Record):
    """A ratio of times with its interval."""

    value: Ratio
    low: Ratio
    high: Ratio
    confidence: float = Field(gt=0, lt=1, allow_inf_nan=False)

    @model_validator(mode="after")
    def _in_order(self) -> StoredRatio:
        if not self.low <= self.value <= self.high:
            raise ValueError("must be low <= value <= high")
        return self

    @property
    def interval(self) -> Interval:
        """The same, to reckon with."""
        return Interval(**self.model_dump())


class BaselineCell(Record):
    """One cell as it was measured then."""

    arm: Arm
    batch_size: Count
    ratio: StoredRatio  # its time / that of the static network
    resolution: float = Field(ge=0, lt=1e6, allow_inf_nan=False)
    facts: dict[str, Any]  # totals by the name of the quantity, and `decisions`, as `RevisionWorker.exact` gives them

    @property
    def name(self) -> str:
        """As `GateCell.name`."""
        return GateCell(arm=self.arm, batch_size=self.batch_size, batches=0).name

    @field_validator("facts")
    @classmethod
    def _decisions_and_numbers(cls, facts: dict[str, Any]) -> dict[str, Any]:
        if DECISIONS not in facts:
            raise ValueError(f"key {DECISIONS!r} is missing")
        for key, value in facts.items():
            if key == DECISIONS:
                if not (isinstance(value, str) and re.fullmatch(HASH, value)):
                    raise ValueError(f"{key!r} must be a hash of 16 to 64 hexadecimal digits, not {_shown(value)}")
            elif not _is_total(value):
                accepted = "a finite number, or say why there is none"
                raise ValueError(f"{_shown(key)} must be {accepted}, not {_shown(value)}")
            elif key in COUNTED and not isinstance(value, dict) and value < 0:
                raise ValueError(f"{key!r} must be 0 or more, not {value!r}")
        return {key: float(value) if type(value) is int else value for key, value in facts.items()}


def _is_total(value: Any) -> bool:
    """Whether it is a finite number, or says why there is none."""
    if isinstance(value, dict):
        return value.keys() == {"unavailable"} and isinstance(value["unavailable"], str)
    return type(value) in (int, float) and math.isfinite(value)


class Baseline(Record):
    """The content of a file."""

    dynbench_check: int = VERSION
    workload: str
    head: str
    machine: str
    device: str
    threads: Count
    started: str
    stream_hash: Hash
    cells: list[BaselineCell] = Field(min_length=1)

    @field_validator("cells")
    @classmethod
    def _differ(cls, cells: list[BaselineCell]) -> list[BaselineCell]:
        names = [c.name for c in cells]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"{twice!r} is there twice")
        return cells

    @classmethod
    def of(cls, gate: Gate, stream_hash: str, cells: list[BaselineCell]) -> Baseline:
        """What is to be kept of a check."""
        return cls(
            workload=gate.workload,
            head=gate.head,
            machine=gate.machine,
            device=gate.device,
            threads=gate.threads,
            started=gate.started,
            stream_hash=stream_hash,
            cells=cells,
        )

    def cell(self, cell: GateCell) -> BaselineCell:
        """The same cell, as it was measured then.

        Raises:
            CannotTell: there is none.
        """
        for then in self.cells:
            if (then.arm, then.batch_size) == (cell.arm, cell.batch_size):
                return then
        raise CannotTell(f"the baseline has no {cell.name}; it has {', '.join(c.name for c in self.cells)}")

    def check_comparable(self, workload: str, options: Options) -> None:
        """Checks that what is measured now can be compared with it.

        Args:
            workload: the name of the one that is measured now.
            options: of the run.

        Raises:
            UserError: it is of another workload.
            CannotTell: it was measured on another machine or device, or with other threads.
        """
        if workload != self.workload:
            raise UserError(f"the baseline is of workload {self.workload!r}, not of {workload!r}")
        self._check_same("machine", self.machine, cpu_model())
        self._check_same("device", self.device, options.device)
        self._check_same("threads", self.threads, options.threads)

    def check_prepared(self, cells: list[GateCell], stream_hash: str) -> None:
        """Checks that it has what is about to be measured.

        Raises:
            CannotTell: it lacks a cell, or the inputs are others.
        """
        self._check_same("stream hash", self.stream_hash, stream_hash)
        for cell in cells:
            self.cell(cell)

    def _check_same(self, what: str, then: object, now: object) -> None:
        if then != now:
            raise CannotTell(f"the baseline was measured with a different value of {what}: {then}, not {now}")

    def since_then(self, cell: GateCell, ratio: Interval, resolution: float) -> tuple[Interval, float]:
        """The change since then, and how small a change both measurements together can resolve.

        Args:
            cell: what was measured.
            ratio: its time now / that of the static network now.
            resolution: of this ratio.

        Raises:
            CannotTell: it was not measured then.
        """
        then = self.cell(cell)
        return quotient(ratio, then.ratio.interval), math.hypot(resolution, then.resolution)


def read(file: Path) -> Baseline:
    """What `save` wrote.

    Raises:
        UserError: it cannot be read, is something else, or has a value that no measurement gives.
    """
    table = _table(file)
    version = table.get("dynbench_check") if isinstance(table, dict) else None
    if type(version) is not int or version < 1:
        raise UserError(f"{file} is no baseline: it has no 'dynbench_check', which `dynbench check --save` writes")
    if version < VERSION:
        raise UserError(
            f"baseline {file} has version {version}, of an earlier dynbench that measured differently; "
            f"write it again with `dynbench check --save {file}`"
        )
    if version > VERSION:
        raise UserError(f"baseline {file} has version {version}, of a later dynbench; this one reads {VERSION}")
    try:
        return Baseline.model_validate(table, strict=True)
    except ValidationError as e:
        raise UserError(f"baseline {file}: {_sentence(e)}") from e


def _table(file: Path) -> Any:
    """The JSON in a file."""
    try:
        with ordinary(file).open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as e:
        raise UserError(f"cannot read baseline {file}: {e.strerror}; `dynbench check --save {file}` writes one") from e
    if len(content) > MAX_BYTES:
        raise UserError(f"{file} is no baseline: it is larger than {MAX_BYTES // 2**20} MiB")
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_number,
            parse_int=_integer,
        )
    except RecursionError as e:
        raise UserError(f"baseline {file} is not JSON that can be read: it is nested too deeply") from e
    except ValueError as e:
        raise UserError(f"baseline {file} is not JSON: {e}") from e


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {_shown(next(k for k in keys if keys.count(k) > 1))} is there twice")
    return table


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"{digits[:MAX_DIGITS]}... has more than {MAX_DIGITS} digits")
    return int(digits)


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong: key, value, and what is accepted."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part)[:SHOWN] for part in first["loc"])
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "missing":
        return f"key {key} is missing{more}"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{more}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key} = {_shown(first['input'])}: {message[0].lower()}{message[1:]}{more}"


def _shown(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def save(file: Path, baseline: Baseline) -> None:
    """Writes a file for `read`.

    Raises:
        UserError: it cannot be written.
    """
    write_text(file, baseline.model_dump_json(indent=1) + "\n")
