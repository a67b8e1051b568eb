"""Messages between device and cloud: tensors as safetensors, so that nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Sequence

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dynbench.devices.link import PeerLost, TokenBucket


def pack(parts: Sequence[Tensor], **facts: str) -> bytes:
    """A message of tensors, in order, with named strings beside them."""
    return save({f"{i}": part.contiguous().cpu() for i, part in enumerate(parts)}, facts or None)


def unpack(message: bytes) -> tuple[list[Tensor], dict[str, str]]:
    """The tensors of a message and the strings beside them.

    Raises:
        PeerLost: `pack` does not make such a message.
    """
    try:
        named = load(message)
        size = int.from_bytes(message[:8], "little")
        facts = json.loads(message[8 : 8 + size]).get("__metadata__", {})
        return [named[f"{i}"] for i in range(len(named))], facts
    except (SafetensorError, ValueError, KeyError) as e:
        raise PeerLost(f"the other end sent what is not a message: {type(e).__name__}: {e}") from e


def bucket(mbit_s: float | None) -> TokenBucket | None:
    """What limits the rate in one direction of a network; None: nothing does."""
    return None if mbit_s is None else TokenBucket(mbit_s * 1e6 / 8)
