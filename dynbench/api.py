"""dynbench from Python: what the commands `run` and `verify` do, with results as a pandas frame."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynbench import devices
from dynbench.analysis.verdict import verdict
from dynbench.errors import UserError
from dynbench.experiment import Options, Workload, check_options, chosen_workloads, load_specs, run_experiment
from dynbench.report.selection import device_phrase
from dynbench.report.write import write_report
from dynbench.store.export import cells_frame
from dynbench.store.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from dynbench.experiment.verify import Verdict

Workloads = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Results:
    """What a run measured.

    Attributes:
        run: the run directory as it was read: its manifest and cells.
    """

    run: Run

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.run.path

    def frame(self) -> pd.DataFrame:
        """A row per cell; the columns are those of `dynbench export --csv`, with units in their names."""
        return cells_frame(self.run)

    def samples(self, group_id: str) -> pd.DataFrame:
        """A row per timed batch of a group: process, round, position, arm, batch_id, start_ns, duration_ns, ..."""
        return self.run.samples(group_id)

    def sentences(self) -> dict[str, str]:
        """What was found, in a sentence or two for each workload, by its name."""
        where = device_phrase(self.run.manifest, self.run.cells)
        return {name: verdict(info, self.run.cells, where) for name, info in self.run.manifest.workloads.items()}

    def report(self, folder: Path | None = None) -> list[Path]:
        """Writes `report.html` and `report.md`; default: into the run directory. Returns the files."""
        return write_report(self.path, out=folder)


def run(workloads: Workloads = (), *, out: str | Path | None = None, device: str = "cpu", **options: Any) -> Results:
    """Measures workloads, as `dynbench run` does, without writing the report.

    Args:
        workloads: names of `dynbench list workloads`, or TOML files; none: the default suite.
        out: the run directory; default: `runs/DATE-TIME-DEVICE`.
        device: 'cpu', 'cuda' or 'cuda:N'.
        **options: fields of `dynbench.Options`: strategies, engines, batch_sizes, decisions, dtype, threads,
            time_limit_s, precision (a share), seed, data_dir, load, target, deployed (also every network in its
            fastest way; default: unless engines are given).

    Raises:
        UserError: something asked for is not there or cannot be used; one sentence.
    """
    asked = _options(device, {"deployed": "engines" not in options, **options})
    folder = Path(out or f"runs/{datetime.datetime.now():%Y%m%d-%H%M%S}-{asked.device.replace(':', '')}")
    run_experiment(_listed(workloads), asked, folder, command=[Path(sys.argv[0]).name, *sys.argv[1:]])
    return Results(Run.open(folder))


def verify(workloads: Workloads = (), *, device: str = "cpu", **options: Any) -> list[Verdict]:
    """Checks that every strategy gives the answer of `per_sample`, as `dynbench verify` does.

    Args:
        workloads: as of `run`.
        device: as of `run`.
        **options: as of `run`.

    Returns:
        A verdict for every workload and strategy; `.ok` says whether it is the same answer.

    Raises:
        UserError: as `run`.
    """
    from dynbench.experiment.verify import verify_workloads  # torch is imported here

    specs: list[Workload] = load_specs(_listed(workloads))
    return list(verify_workloads(specs, check_options(_options(device, options))))


def open_run(path: str | Path) -> Results:
    """The results of a run directory.

    Raises:
        UserError: there is none, or it is corrupt.
    """
    return Results(Run.open(Path(path)))


def _listed(workloads: Workloads) -> list[str]:
    given = [workloads] if isinstance(workloads, (str, Path)) else workloads
    return chosen_workloads([str(w) for w in given])


def _options(device: str, options: dict[str, Any]) -> Options:
    try:
        return Options(device=devices.device(device).name, **options)
    except ValueError as e:
        raise UserError(f"options of a run: {' '.join(str(e).split())}") from e
