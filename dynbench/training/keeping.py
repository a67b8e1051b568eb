"""What of a training is kept while it goes on: one mechanism for all loops.

A folder in the output folder has a record of what was asked for and of the networks that are finished, and a checkpoint
for each loop. It is there only as long as the training is not finished.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dynbench.errors import UserError
from dynbench.files import make_own_folder, write_text
from dynbench.training.checkpoint import Checkpoint, Stateful, random_state, set_random_state, write_checkpoint
from dynbench.training.interrupts import Interrupts

KEEP_EVERY_S = 30.0
FOLDER = "unfinished"
RECORD = "training.json"
CHECKPOINT = ".checkpoint"

Steps = Callable[..., Iterable[int]]  # `(number of steps, part=..., ..)`: the steps that are still to be made


def unkept(total: int, **parts: Stateful) -> Iterable[int]:
    """The steps of a loop of which nothing is kept."""
    return range(total)


class Record:
    """What an unfinished training was asked for, and the networks that it has finished.

    Args:
        folder: of the record; made if necessary.
        asked: plain data; another one cannot go on, unless nothing was kept yet.
        fresh: what is there is removed first.
        source: a hash of the recipe's text; another one goes on: a recipe that raised is put right and started again.

    Attributes:
        goes_on: something was kept.
        source_changed: by another text of the recipe.

    Raises:
        UserError: what is there was asked for differently, is damaged, or the folder cannot be written.
    """

    def __init__(self, folder: Path, asked: dict[str, Any], fresh: bool = False, source: str | None = None) -> None:
        self.folder, self._file = folder, folder / RECORD
        self.asked: dict[str, Any] = json.loads(json.dumps(asked))
        self.finished: list[str] = []
        make_own_folder(folder)
        if fresh:
            self.remove()
        self.source, self.source_changed = source, False
        self.goes_on = self._file.is_file() and self._read()
        if not self.goes_on:
            self.remove()  # without a record, nobody knows of what these are
            make_own_folder(folder)
        self._write()

    def _kept(self) -> list[Path]:
        return [*self.folder.glob(f"*{CHECKPOINT}"), *self.folder.glob("*.note.json")]

    def _read(self) -> bool:
        """Whether there is something to go on with."""
        try:
            record = json.loads(self._file.read_text(encoding="utf-8"))
            before, finished = dict(record["asked"]), [str(name) for name in record["finished"]]
            self.source_changed = record["source"] != self.source
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise UserError(f"{self._file} is damaged; --fresh begins anew") from e
        if not finished and not self._kept():
            return False
        if (changed := _first_difference(before, self.asked)) is not None:
            what, then, now = changed
            raise UserError(
                f"{self.folder.parent} has an unfinished training with another {what}: {then} then, {now} now; "
                "--fresh begins anew, --out names another folder"
            )
        self.finished = finished
        return True

    def finish(self, name: str) -> None:
        """A network is finished: its weights and card are written."""
        if name not in self.finished:
            self.finished.append(name)
            self._write()

    def _write(self) -> None:
        record = {"asked": self.asked, "finished": self.finished, "source": self.source}
        write_text(self._file, json.dumps(record, indent=2) + "\n")

    def close(self) -> None:
        """Leaves no folder if nothing was kept."""
        if not self.finished and not self._kept():
            self.remove()

    def remove(self) -> None:
        """Removes the folder, but for files that are not of a training; the record last."""
        if self.folder.is_symlink() or not self.folder.is_dir():
            return
        for file in [*self._kept(), self._file]:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


@dataclass
class Keeping:
    """When loops of one training are kept, and where.

    Attributes:
        folder: of checkpoints.
        device: on which parts are.
        every_s: at least so often.
        restore: loops go on from checkpoints.
        interrupts: that are to end the training.
        record: None: of a session that is not one of `train_workload`.
        last: the loop that was kept last, and how far it is.
        epochs_count: some settings of the recipe have epochs.
    """

    folder: Path
    device: torch.device
    every_s: float = KEEP_EVERY_S
    restore: bool = False
    interrupts: Interrupts = field(default_factory=Interrupts)
    record: Record | None = None
    last: str | None = None
    epochs_count: bool = False
    kept_at: float = field(default_factory=time.monotonic)

    def file(self, name: str) -> Path:
        """The checkpoint of a loop."""
        return self.folder / f"{name}{CHECKPOINT}"

    def forget(self, name: str) -> None:
        """Removes the checkpoints of a network: its loop's and those of its numbered loops."""
        for file in self.folder.glob(f"*{CHECKPOINT}"):
            if file.name.removesuffix(CHECKPOINT).partition("@")[0] == name:
                file.unlink(missing_ok=True)

    def summary(self) -> str:
        """What is kept, as a part of a sentence."""
        finished = self.record.finished if self.record else []
        parts = [f"finished {', '.join(finished)}"] * bool(finished) + ([self.last] if self.last else [])
        return f"kept: {'; '.join(parts)}" if parts else "nothing was to be kept yet"


class Loop:
    """A loop that is kept every so often and goes on where it was; iterating gives the steps still to be made.

    Args:
        keeping: of the training.
        name: of its checkpoint.
        about: plain data that the same loop has in common: settings, data.
        total: number of steps.
        parts: what the loop changes, besides random numbers and `values`.
    """

    def __init__(
        self, keeping: Keeping, name: str, about: Mapping[str, Any], total: int, parts: Mapping[str, Stateful]
    ) -> None:
        self._keeping, self._name, self._total, self._parts = keeping, name, total, parts
        self._about = json.loads(json.dumps({**about, "steps": total}))
        self.values: dict[str, float] = {}
        self._seconds, self._since = 0.0, 0.0
        self._runs = False

    @property
    def seconds(self) -> float:
        """Spent in this loop, in all sittings."""
        return self._seconds + (time.monotonic() - self._since if self._runs else 0.0)

    def __iter__(self) -> Iterator[int]:
        keeping = self._keeping
        first = self._restored()
        if first == self._total:
            return
        self._runs, self._since = True, time.monotonic()
        with keeping.interrupts.deferred():
            for step in range(first, self._total):
                yield step
                done = step + 1
                due = time.monotonic() - keeping.kept_at >= keeping.every_s
                if done == self._total or due or keeping.interrupts.asked:
                    self._keep(done)
                keeping.interrupts.check()
        self._seconds, self._runs = self.seconds, False

    def _keep(self, done: int) -> None:
        facts = {"about": self._about, "done": done, "values": self.values, "seconds": self.seconds}
        make_own_folder(self._keeping.folder)
        write_checkpoint(self._keeping.file(self._name), facts, self._parts)
        self._keeping.last = f"{self._name} after {done} of {self._total} steps"
        self._keeping.kept_at = time.monotonic()

    def _restored(self) -> int:
        """Puts the state back if there is one; the number of steps that are done."""
        file = self._keeping.file(self._name)
        if not self._keeping.restore or not file.is_file():
            return 0
        checkpoint = Checkpoint(file)
        facts = checkpoint.facts
        if (changed := _first_difference(facts["about"], self._about)) is not None:
            what, then, now = changed
            raise UserError(
                f"checkpoint {file} is of a training with another {what}: {then} then, {now} now; --fresh begins anew"
            )
        checkpoint.restore(self._parts, self._keeping.device)
        self.values, self._seconds = facts["values"], facts["seconds"]
        self._keeping.last = f"{self._name} after {facts['done']} of {self._total} steps"
        return int(facts["done"])


class Batches:
    """Rows in random order, anew for every pass over them; the order is part of what a loop keeps.

    Args:
        rows: number of rows.
        batch_size: rows per step; the last step of a pass may have fewer.
    """

    def __init__(self, rows: int, batch_size: int) -> None:
        self._rows, self._size, self._order = rows, batch_size, torch.empty(0, dtype=torch.long)
        self.per_pass = -(-rows // batch_size)

    def __call__(self, step: int) -> torch.Tensor:
        """The rows of a step: [batch_size] long."""
        if step % self.per_pass == 0:
            self._order = torch.randperm(self._rows)
        return self._order.split(self._size)[step % self.per_pass]

    def state_dict(self) -> dict[str, Any]:
        """The order of this pass."""
        return {"order": self._order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the order of a pass."""
        self._order = state["order"].cpu()


@contextlib.contextmanager
def random_numbers_untouched(on: bool = True) -> Iterator[None]:
    """Whatever is drawn in the block does not change the random numbers after it."""
    state = random_state()
    yield
    if on:
        set_random_state(state)


def _first_difference(then: Any, now: Any, path: str = "") -> tuple[str, str, str] | None:
    """Where plain data differ first: a dotted path, and both values."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(k for k in now if k not in then)]:
            found = _first_difference(then.get(key), now.get(key), f"{path}.{key}" if path else str(key))
            if found is not None:
                return found
        return None
    return None if then == now else (path.replace("_", " "), _short(then), _short(now))


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]} ... {text[-28:]}"
