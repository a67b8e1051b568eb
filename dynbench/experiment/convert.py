"""A PyTorch file as a safetensors file: nothing in it is run, and of a checkpoint the state dict is taken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dynbench.errors import UserError, suggestion
from dynbench.experiment.weights import INDEX, PYTORCH, SAFETENSORS, kind_of, not_weights, shards
from dynbench.files import write_bytes

DEPTH = 3  # so many keys may lead to a state dict
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|type (?:<class ')?([\w.]+)")


@dataclass(frozen=True)
class Converted:
    """A file that was written.

    Attributes:
        file: which.
        key: where its tensors were in the PyTorch file; '': at the top.
        tensors: how many.
        bytes: of the file.
        left_out: what stood beside the tensors, as 'name (type)'.
    """

    file: Path
    key: str
    tensors: int
    bytes: int
    left_out: list[str]


def convert(file: Path, out: Path | None = None, *, key: str | None = None, force: bool = False) -> Converted:
    """Writes the state dict of a PyTorch file as a safetensors file.

    Args:
        file: what torch.save wrote, or the index of several such files.
        out: where to write; default: beside it, with the suffix '.safetensors'.
        key: of the state dict in a checkpoint, such as 'model' or 'ema.state_dict'; default: the only one there is.
        force: an existing file is replaced.

    Raises:
        UserError: the file is none, holds something else than tensors, or several state dicts; or `out` exists.
    """
    kind = kind_of(file)
    if kind == SAFETENSORS:
        raise UserError(f"{file} is a safetensors file already")
    if kind not in (PYTORCH, INDEX):
        raise not_weights(file, kind)
    out = out or file.with_suffix(".safetensors")
    if out.exists() and out.samefile(file):
        raise UserError(f"{out} would replace the file that is read; give another with --out FILE")
    if out.exists() and not force:
        raise UserError(f"{out} exists; --force replaces it")
    key, table = _state_dict(file, _load(file, kind), key)
    state = {name: _plain(file, name, value) for name, value in table.items() if isinstance(value, Tensor)}
    content = _as_safetensors(file, state)
    write_bytes(out, content)
    others = [f"{name} ({type(v).__name__})" for name, v in table.items() if not isinstance(v, Tensor)]
    return Converted(out, key, len(state), len(content), others)


def _load(file: Path, kind: str) -> Any:
    if kind == INDEX:
        parts = {shard: _load(shard, kind_of(shard)) for shard in shards(file)}
        for shard, part in parts.items():
            if not isinstance(part, Mapping):
                raise UserError(f"{shard} holds no state dict, a table of tensors by name: it is {type(part).__name__}")
        return {name: value for part in parts.values() for name, value in part.items()}
    if kind != PYTORCH:
        raise not_weights(file, kind)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:
        text = str(e)
        if (found := _GLOBAL.search(text)) is not None and "weights_only" in text:
            raise UserError(
                f"{file} holds Python objects ({found[1] or found[2]}) that are not loaded, as loading them may run "
                "code: if you trust the file, load it yourself and save its state dict alone"
            ) from e
        raise UserError(f"{file} cannot be read, it may be cut short: {text.partition(chr(10))[0]}") from e


def _state_dict(file: Path, loaded: Any, key: str | None) -> tuple[str, Mapping[str, Any]]:
    """Where in a loaded file its state dict is, and the state dict."""
    found = dict(_tables(loaded))
    if key is not None:
        if key not in found:
            raise UserError(f"{file} has no state dict at {key!r}; {suggestion(key, filter(None, found))}")
        return key, found[key]
    if not found:
        keys = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else ""
        what = f"a table of {keys}" if keys else type(loaded).__name__
        raise UserError(f"{file} holds no state dict, a table of tensors by name: it is {what}")
    if len(found) > 1:
        each = ", ".join(f"{k!r} (of {_count(table)})" for k, table in found.items())
        raise UserError(f"{file} holds several tables of tensors: {each}; choose one with --key")
    return next(iter(found.items()))


def _tables(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The state dicts in a value with the keys that lead there; where tensors lie beside tables, only the tensors."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        return
    if _count(value):
        yield key, value
    elif depth < DEPTH:
        for name, part in value.items():
            if not name.startswith(("optim", "lr_scheduler", "scaler", "rng")):
                yield from _tables(part, f"{key}.{name}" if key else name, depth + 1)


def _count(table: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in table.values())


def _plain(file: Path, name: str, value: Tensor) -> Tensor:
    """A copy of a tensor with memory of its own, row by row."""
    if value.is_quantized or value.layout is not torch.strided or value.is_nested:
        kind = value.dtype if value.is_quantized else value.layout
        raise UserError(f"{file}: {name} is a tensor of kind {kind}, which a safetensors file cannot hold")
    return value.detach().clone(memory_format=torch.contiguous_format)


def _as_safetensors(file: Path, state: dict[str, Tensor]) -> bytes:
    try:
        return save(state, metadata={"format": "pt"})
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise UserError(f"{file}: its tensors cannot be written as safetensors: {e}") from e
