"""A trace: all decisions of one stream, addressed by (point, coordinates), and which of them were reached."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dynbench.errors import UserError
from dynbench.files import write_bytes, write_text
from dynbench.reading import ordinary, read_json

SCHEMA_VERSION = 1
Key = tuple[str, tuple[int, ...]]  # point name, sizes of the coordinates below the sample


class TraceError(ValueError):
    """A trace that cannot be read or does not fit; the message says why in one sentence."""


class Entry(NamedTuple):
    """All decisions of one point: `value` [items * prod(coordinates), ...] and `reached` [...] bool."""

    value: Tensor
    reached: Tensor


class Trace:
    """Decisions of one stream.

    Attributes:
        entries: by point and coordinate sizes; tables over all coordinates, mixed radix, sample first.
        items: number of samples in the stream.
        stream_hash: content hash of the stream it belongs to; empty: not bound to one.
        covers: names of the points of the model it was recorded on, also of those that no item reached.
    """

    def __init__(
        self,
        entries: dict[Key, Entry] | None = None,
        items: int = 0,
        stream_hash: str = "",
        covers: frozenset[str] = frozenset(),
    ) -> None:
        self.entries: dict[Key, Entry] = {} if entries is None else entries
        self.items, self.stream_hash, self.covers = items, stream_hash, covers

    def look_up(self, point: str, extent: tuple[int, ...], ids: Tensor | range) -> Tensor | None:
        """The decisions of `ids` [n] at a point; None where no item of the stream reached it.

        Of a range of ids the answer is a view of the table, not to be written into.

        Raises:
            TraceError: the trace is of a model without this point, or of a stream of another length.
        """
        entry = self.entries.get((point, extent[1:]))
        if extent[0] != self.items:
            raise TraceError(f"the trace is of a stream of {self.items} items, not of {extent[0]}")
        if entry is not None:
            if isinstance(ids, range):
                return entry.value[ids.start : ids.stop : ids.step]
            return entry.value.index_select(0, ids)
        if point in self.covers:
            return None
        raise TraceError(
            f"the trace is of another model: it has no point {point!r}, but {', '.join(sorted(self.covers)) or 'none'}"
        )

    def record(self, point: str, extent: tuple[int, ...], ids: Tensor, live: Tensor | None, decision: Tensor) -> None:
        """Keeps the decisions [n, ...] of `ids` [n]; an item whose `live` [n] is False did not reach the point."""
        key = (point, extent[1:])
        size = math.prod(extent)
        if key not in self.entries:
            value = decision.new_zeros((size, *decision.shape[1:]))
            self.entries[key] = Entry(value, torch.zeros(size, dtype=torch.bool, device=ids.device))
        value, reached = self.entries[key]
        decision = decision.detach()
        if live is None:
            value.index_copy_(0, ids, decision)
            reached.index_fill_(0, ids, True)
        else:  # no boolean indexing: it would wait for a GPU
            mask = live.view(-1, *[1] * (decision.dim() - 1))
            value.index_copy_(0, ids, torch.where(mask, decision, value.index_select(0, ids)))
            reached.index_copy_(0, ids, reached.index_select(0, ids) | live)

    def of_items(self, rows: Tensor) -> Trace:
        """The decisions about some items [n] of the stream, as those about a stream of their own."""
        entries = {}
        for key, (value, reached) in self.entries.items():
            per = math.prod(key[1])
            ids = (rows.to(reached.device)[:, None] * per + torch.arange(per, device=reached.device)).flatten()
            entries[key] = Entry(value.index_select(0, ids), reached.index_select(0, ids))
        return Trace(entries, len(rows), covers=self.covers)

    def to(self, device: torch.device | str) -> Trace:
        """The same trace, its tables on `device`, where a strategy waits for them as for learned decisions."""
        entries = {k: Entry(e.value.to(device), e.reached.to(device)) for k, e in self.entries.items()}
        return Trace(entries, self.items, self.stream_hash, self.covers)

    def reached_only(self) -> dict[Key, tuple[Tensor, Tensor]]:
        """Entries with zeros where they were not reached, without points that no item reached; on the CPU."""
        out = {}
        for key, (value, reached) in self.entries.items():
            if bool(reached.any()):
                mask = reached.view(-1, *[1] * (value.dim() - 1))
                out[key] = (torch.where(mask, value, torch.zeros_like(value)).cpu(), reached.cpu())
        return out

    def __eq__(self, other: object) -> bool:
        """Equal: the same entries were reached, and the same was decided there."""
        if not isinstance(other, Trace):
            return NotImplemented
        a, b = self.reached_only(), other.reached_only()
        return a.keys() == b.keys() and all(_same(u, v) for k in a for u, v in zip(a[k], b[k], strict=True))

    __hash__ = None  # type: ignore[assignment]

    def hash(self) -> str:
        """Content hash (hex, 16 digits) of the reached entries."""
        h = hashlib.sha256()
        for key, (value, reached) in sorted(self.reached_only().items()):
            h.update(repr((key, tuple(value.shape[1:]), value.dtype)).encode())
            h.update(value.view(torch.uint8).numpy().tobytes())
            h.update(reached.numpy().tobytes())
        return h.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes `<path>.safetensors` (tables) and `<path>.json` (addresses, stream), each in one step.

        Raises:
            UserError: the folder is not writable, or the disk is full.
        """
        keys = list(self.entries)
        tables: dict[str, Tensor] = {}
        for i, key in enumerate(keys):
            value, reached = self.entries[key]
            tables[f"{i}.value"], tables[f"{i}.reached"] = value.cpu().contiguous(), reached.cpu().contiguous()
        write_bytes(Path(f"{path}.safetensors"), save(tables))
        about = {
            "schema": SCHEMA_VERSION,
            "items": self.items,
            "stream_hash": self.stream_hash,
            "hash": self.hash(),
            "covers": sorted(self.covers),
            "points": [[name, list(sizes)] for name, sizes in keys],
        }
        write_text(Path(f"{path}.json"), json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, stream_hash: str | None = None) -> Trace:
        """Reads what `save` wrote.

        Args:
            path: without suffix.
            stream_hash: the stream it is for; a trace of another is refused.

        Raises:
            TraceError: a file is missing, corrupt, of a newer schema, or the trace is of another stream.
        """
        try:
            about: dict[str, Any] = read_json(Path(f"{path}.json"))
            if about["schema"] > SCHEMA_VERSION:
                raise TraceError(f"{path}.json has schema {about['schema']}; known are schemas up to {SCHEMA_VERSION}")
            tables = load_file(ordinary(Path(f"{path}.safetensors")))
            entries = {
                (name, tuple(sizes)): Entry(tables[f"{i}.value"], tables[f"{i}.reached"])
                for i, (name, sizes) in enumerate(about["points"])
            }
            trace = cls(entries, about["items"], about["stream_hash"], frozenset(about["covers"]))
            if not all(isinstance(name, str) for name in (*trace.covers, *(name for name, _ in entries))):
                raise TraceError(f"{path}.json is corrupt: a name of a point is no text")
            whole = all(
                e.value.shape[0] == e.reached.shape[0] == trace.items * math.prod(k[1]) for k, e in entries.items()
            )
            if not whole or trace.hash() != about["hash"]:
                raise TraceError(f"{path}.safetensors does not hold what {path}.json says: the trace is corrupt")
        except TraceError:
            raise
        except UserError as e:
            raise TraceError(f"{path} is not a readable trace: {e}") from e
        except (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as e:
            raise TraceError(f"{path} is not a readable trace: {type(e).__name__}: {e}") from e
        if stream_hash is not None and trace.stream_hash != stream_hash:
            raise TraceError(f"{path} was recorded on stream {trace.stream_hash or '(none)'}, not on {stream_hash}")
        return trace


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
