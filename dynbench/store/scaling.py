"""`scaling.jsonl` of a run directory: what the cost model is made of, a line per workload.

It holds T(n), the time of every region at n items, measured in place; what each arm was seen to call, move and wait
for; and what the device takes for such things. Written and read as a whole; a run without it has none of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from dynbench.errors import UserError
from dynbench.files import write_text
from dynbench.reading import ordinary
from dynbench.store.jsonable import first_fault, to_json
from dynbench.store.schema import STORED, Arm, Cell, Count, CountFrom1, NotMeasured, Positive, Record

FORMAT = 2
FILE = "scaling.jsonl"
LARGEST = 1 << 27  # bytes of such a file


Role = Literal["body", "decide", "moving", "points"]


class Constants(Record):
    """What a device takes for the things that a strategy does between regions; medians of short loops."""

    operator_us: Positive  # a call of an operator on a single number
    region_us: Positive  # a call of an empty module
    point_us: Positive  # a visit to a decision point at which nothing is to be done
    wait_us: Positive  # the host looks at a value, with nothing left to wait for
    gather_us: Positive  # a call that gathers rows, of one row
    moved_bytes_per_s: Positive  # gathered and put back, read and written

    @classmethod
    def of(cls, figures: Mapping[str, float]) -> Constants:
        """Those among the figures of micro-benchmarks, in s and bytes/s, by their names in a calibrated profile.

        Raises:
            KeyError: one is missing.
        """
        return cls(
            operator_us=figures["operator call"] * 1e6,
            region_us=figures["region call"] * 1e6,
            point_us=figures["point"] * 1e6,
            wait_us=figures["wait"] * 1e6,
            gather_us=figures["gather call"] * 1e6,
            moved_bytes_per_s=(figures["gather"] * figures["scatter"]) ** 0.5,
        )


class Part(Record):
    """A region, or a whole static network, and its T(n) in place.

    Attributes:
        name: of the region within its network; '' is the whole network.
        role: of whose time it is: 'body' (also the fixed parts of a model) or 'decide' (gates, policies, heads); of
            what lies between the regions of a graph, for a call of the whole: 'moving' or 'points'.
        operators: called by one call of it, in eager PyTorch; 0: not seen.
        sizes: items per call, ascending; where calls of it differ in work per item, the least counts as one item.
        us: median time of a call at each size.
        low_us: lower quartile at each size.
        high_us: upper quartile.
    """

    name: str
    role: Role = "body"
    operators: Count = 0
    sizes: list[CountFrom1] = Field(min_length=1)
    us: list[Positive]
    low_us: list[Positive]
    high_us: list[Positive]

    @model_validator(mode="after")
    def _one_each(self) -> Part:
        if not len(self.sizes) == len(self.us) == len(self.low_us) == len(self.high_us):
            raise ValueError("a time for each size is expected")
        if any(b <= a for a, b in pairwise(self.sizes)):
            raise ValueError("sizes must ascend")
        return self


class Network(Record):
    """A network prepared by an engine, and the scaling of its parts.

    Attributes:
        baseline: its name among static networks; None: the workload's own.
        engine: what executes its regions.
        form: how it is written.
        control: who plays the strategy: 'host' region by region, or the 'graph' that the network is.
        single: it is a graph for a single item.
        decided: regions were called with what was decided; False: with all items.
        parts: its regions; of a static network itself alone.
    """

    baseline: str | None = None
    engine: str = "eager"
    form: str = "plain"
    control: Literal["host", "graph"] = "host"
    single: bool = False
    decided: bool = False
    parts: list[Part] = Field(min_length=1)

    @property
    def key(self) -> tuple[str | None, str, str, Literal["host", "graph"], bool, bool]:
        """What it is, and how it was called: all but the parts."""
        return self.baseline, self.engine, self.form, self.control, self.single, self.decided


class Between(Record):
    """What lies between the regions of a network, in place: as walks under masking show it.

    Attributes:
        call_us: Python around a call of a region: at points, in loops, and in the model itself.
        us_per_byte: read or written by operators there.
    """

    call_us: Positive
    us_per_byte: Positive


class Rate(Record):
    """What a FLOP takes in place, by how many an operator executes.

    Attributes:
        flops: of one operator, ascending.
        us_per_flop: at each of these.
    """

    flops: list[Positive] = Field(min_length=1)
    us_per_flop: list[Positive]


class Counted(Record):
    """What was seen outside regions; it is counted, not timed.

    Attributes:
        movings: operators that gather rows or put them back.
        moved_bytes: that these read and wrote.
        operators: other operators.
        operator_bytes: that these read and wrote, but for products.
        products: operators among these that execute FLOPs, such as with weights that are sliced or made for a call.
        flops: that these execute.
        waits: times that the host looked at a value.
        points: visits to decision points.
    """

    movings: Count
    moved_bytes: Count
    operators: Count
    operator_bytes: Count
    products: Count = 0
    flops: Count = 0
    waits: Count
    points: Count


class Usage(Counted):
    """What an arm did in one pass over the first items of the stream.

    Attributes:
        arm: which, of engine 'eager'; another engine is asked for the same.
        label: of the decisions that it replayed.
        keep_rate: of these.
        made_up: the decisions were drawn at a rate.
        batch_size: in items.
        items: of the stream that were watched, from its first on.
        decided: regions are called with what was decided; False: with all items.
        calls: of each region, by how many items it was called with; counted as in T(n).
    """

    arm: Arm
    label: str
    keep_rate: float | None = None
    made_up: bool = False
    batch_size: CountFrom1
    items: CountFrom1
    decided: bool = False
    calls: dict[str, dict[int, CountFrom1]]


class Scaling(Record):
    """Everything of one workload."""

    format: int = FORMAT
    workload: str
    machine: str  # name of the device that it was measured on
    device: str
    threads: CountFrom1
    dtype: str
    constants: Constants
    networks: list[Network]
    fixed: list[str] = Field(default_factory=list)  # regions that run for every item; an engine may merge them away
    usages: list[Usage]
    between: Between | None = None  # None: only the constants are known
    between_decided: Between | None = None  # of calls with what was decided; None: the same
    rate: Rate | None = None  # of products; None: none was seen
    paces: dict[str, Positive] = Field(default_factory=dict)  # of the machine, by cell and by group; 1 in the middle
    missing: list[NotMeasured] = Field(default_factory=list)

    def pace(self, cell: Cell) -> float:
        """How much longer things took while a cell was measured than in the middle of all."""
        return self.paces.get(cell.cell_id, self.paces.get(cell.group_id, 1.0))

    def network(
        self,
        baseline: str | None,
        engine: str,
        form: str,
        *,
        control: str = "host",
        single: bool = False,
        decided: bool = False,
    ) -> Network | None:
        """The one that was measured; None: it was not."""
        wanted = (baseline, engine, form, control, single, decided)
        return next((n for n in self.networks if n.key == wanted), None)


def write_scaling(run: Path, found: Sequence[Scaling]) -> Path:
    """Writes, or replaces, the scaling of all workloads of a run in one step.

    Raises:
        UserError: the folder cannot be written.
        ValueError: a number is NaN or infinite.
    """
    path = run / FILE
    write_text(path, "".join(to_json(one) + "\n" for one in found))
    return path


def read_scaling(run: Path) -> list[Scaling]:
    """The scaling of the workloads of a run; none was measured: empty.

    Raises:
        UserError: the file cannot be read, is corrupt (named with its line), or a newer dynbench wrote it.
    """
    path = run / FILE
    try:
        if not path.exists():
            return []
        if ordinary(path).stat().st_size > LARGEST:
            raise UserError(f"{path} holds more than {LARGEST >> 20} MiB")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read {path}: {e}") from e
    return [_parse(line, f"{path}:{i}") for i, line in enumerate(lines, start=1)]


def _parse(line: str, where: str) -> Scaling:
    try:
        table = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is corrupt: not JSON: {e}") from e
    if isinstance(table, dict) and isinstance(table.get("format"), int) and table["format"] > FORMAT:
        raise UserError(f"{where} was written by a newer dynbench (format {table['format']}); update dynbench")
    try:
        return Scaling.model_validate(table, context=STORED)
    except ValidationError as e:
        raise UserError(f"{where} is corrupt: {first_fault(e)}") from e
