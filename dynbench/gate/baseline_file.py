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
from pathlib import Path

from pydantic import ValidationError

from dynbench.analysis.statistics import quotient
from dynbench.devices.cpu import cpu_model
from dynbench.errors import UserError
from dynbench.experiment.spec import Options
from dynbench.files import write_text
from dynbench.gate.cells import GateCell
from dynbench.gate.trees import CannotTell
from dynbench.store.gate import Gate
from dynbench.store.schema import Arm, Interval, Record
from dynbench.unavailable import Unavailable

VERSION = 3


class BaselineCell(Record):
    """One cell as it was measured then."""

    arm: Arm
    batch_size: int
    ratio: Interval  # its time / that of the static network
    resolution: float
    facts: dict[str, float | str | Unavailable]  # totals by the name of the quantity, and `decisions`


class Baseline(Record):
    """The content of a file."""

    dynbench_check: int = VERSION
    workload: str
    head: str
    machine: str
    device: str
    threads: int
    started: str
    stream_hash: str
    cells: list[BaselineCell]

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
        names = [GateCell(arm=c.arm, batch_size=c.batch_size, batches=0).name for c in self.cells]
        raise CannotTell(f"the baseline has no {cell.name}; it has {', '.join(names)}")

    def check_comparable(self, options: Options) -> None:
        """Checks that what is measured now can be compared with it.

        Raises:
            CannotTell: it was measured on another machine or device, or with other threads.
        """
        self._check_same("machine", self.machine, cpu_model())
        self._check_same("device", self.device, options.device)
        self._check_same("threads", self.threads, options.threads)

    def check_inputs(self, stream_hash: str) -> None:
        """Checks that the inputs are the same.

        Raises:
            CannotTell: they are not.
        """
        self._check_same("stream hash", self.stream_hash, stream_hash)

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
        return quotient(ratio, then.ratio), math.hypot(resolution, then.resolution)


def read(file: Path) -> Baseline:
    """What `save` wrote.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"cannot read baseline {file}: {e.strerror}; `dynbench check --save {file}` writes one") from e
    except ValueError as e:
        raise UserError(f"baseline {file} is not JSON: {e}") from e
    version = table.get("dynbench_check") if isinstance(table, dict) else None
    if isinstance(version, int) and version < VERSION:
        raise UserError(
            f"baseline {file} has version {version}, of an earlier dynbench that measured differently; "
            f"write it again with `dynbench check --save {file}`"
        )
    try:
        if version != VERSION:
            raise ValueError
        return Baseline.model_validate(table)
    except (ValueError, ValidationError) as e:
        raise UserError(f"{file} is no baseline that `dynbench check --save` wrote with this version") from e


def save(file: Path, baseline: Baseline) -> None:
    """Writes a file for `read`.

    Raises:
        UserError: it cannot be written.
    """
    write_text(file, baseline.model_dump_json(indent=1) + "\n")
