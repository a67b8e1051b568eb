"""The file of a loop that is not finished: tensors as safetensors, the rest as JSON in its header; nothing is pickled.

A state is put back so exactly that the loop goes on bit for bit: with the order in memory of every tensor, on which
the order of additions may depend, with gradients, which clipping may still count when nothing learns from them, and
with the state of all generators of random numbers.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dynbench.errors import UserError
from dynbench.files import write_bytes

FORMAT = "1"


@runtime_checkable
class Stateful(Protocol):
    """What a loop changes, other than a module: an optimizer, a schedule, a loss that remembers something."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, texts, None, and lists, tuples and dictionaries of them."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Puts it back."""
        ...


def write_checkpoint(path: Path, facts: Mapping[str, Any], parts: Mapping[str, Stateful]) -> None:
    """Writes the state of all parts and of the generators of random numbers.

    Args:
        path: of the file, which is replaced in one step.
        facts: plain data: what is trained, and how far it is.
        parts: what the loop changes.

    Raises:
        UserError: the folder is not writable, the disk is full, or a part's state has what cannot be kept.
    """
    tensors: dict[str, Tensor] = {}
    tree = {
        "facts": _packed(dict(facts), "facts", tensors),
        "parts": {name: _packed(_state(part), name, tensors) for name, part in parts.items()},
        "random": _packed(random_state(), "random", tensors),
    }
    text = json.dumps(tree)
    write_bytes(path, save(tensors, {"format": FORMAT, "state": text, "sha256": _digest(text, tensors)}))


class Checkpoint:
    """A file that `write_checkpoint` wrote, read and checked.

    Args:
        path: of the file.

    Raises:
        UserError: it cannot be read, is damaged, or is not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                self._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            text = header["state"]
            if header["format"] != FORMAT or header["sha256"] != _digest(text, self._tensors):
                raise ValueError
            self._tree = json.loads(text)
            self.facts: dict[str, Any] = _unpacked(self._tree["facts"], self._tensors)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            why = e.strerror if isinstance(e, OSError) and e.strerror else "it is damaged or of another version"
            raise UserError(f"checkpoint {path} cannot be read: {why}; --fresh begins anew") from e

    def restore(self, parts: Mapping[str, Stateful], device: torch.device) -> None:
        """Puts the state back into the parts of a loop, and the generators of random numbers.

        Raises:
            UserError: the parts are not like those that were kept.
        """
        kept = self._tree["parts"]
        try:
            if kept.keys() != parts.keys():
                raise KeyError(f"{', '.join(parts)}, not {', '.join(kept)}")
            for name, part in parts.items():
                _put(part, _unpacked(kept[name], self._tensors, device))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"checkpoint {self.path} is of another network or optimizer; --fresh begins anew") from e
        set_random_state(_unpacked(self._tree["random"], self._tensors))


def random_state() -> dict[str, Any]:
    """The state of all generators of random numbers: torch's, of every GPU too, numpy's and Python's."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def _state(part: Stateful) -> dict[str, Any]:
    if not isinstance(part, nn.Module):
        return part.state_dict()
    gradients = {name: p.grad for name, p in part.named_parameters() if p.grad is not None}
    return {"state": part.state_dict(), "gradients": gradients}


def _put(part: Stateful, state: dict[str, Any]) -> None:
    if not isinstance(part, nn.Module):
        part.load_state_dict(state)
        return
    part.load_state_dict(state["state"])
    for name, p in part.named_parameters():
        gradient = state["gradients"].get(name)
        p.grad = None if gradient is None else gradient.to(p.device)


def _packed(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value; its tensors are put into `tensors`, under their paths in it.

    Raises:
        UserError: it is neither a tensor nor plain data.
    """
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path, "stride": list(value.stride())}
    if isinstance(value, dict):
        pairs = [[_packed(k, path, tensors), _packed(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"training cannot be kept: {path} is {type(value).__name__}, neither a tensor nor plain data")


def _unpacked(packed: Any, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = [(k, v) for k, v in packed.items() if k != "stride"]
    if kind == "dict":
        return {_unpacked(k, tensors): _unpacked(v, tensors, device) for k, v in content}
    if kind in ("list", "tuple"):
        values = [_unpacked(v, tensors, device) for v in content]
        return tuple(values) if kind == "tuple" else values
    stored = tensors[content]
    # a number of an optimizer, such as Adam's count of steps, stays where it is: on the CPU
    where = device if device is not None and stored.dim() else stored.device
    return torch.empty_strided(stored.shape, packed["stride"], dtype=stored.dtype, device=where).copy_(stored)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
