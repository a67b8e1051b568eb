"""Weights that a model holds under several names are saved once, under the first."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import Tensor, nn


def shared_once(model: nn.Module) -> None:
    """Makes `state_dict` name each tensor once, and `load_state_dict` accept such a dictionary.

    A decision point refers to modules that also stand elsewhere: one LSTM behind every gate, a block's shortcut that
    is also its bypass. The name registered first counts.

    Args:
        model: complete: what is added later keeps all its names.
    """
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}  # name -> the name registered first
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    for name, tensor in chain(parameters, buffers):
        if first.setdefault(id(tensor), name) != name:
            aliases[name] = first[id(tensor)]

    def leave_out(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any]) -> None:
        for name in aliases:
            state.pop(prefix + name, None)

    def put_in(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for name, of in aliases.items():
            if prefix + of in state:
                state.setdefault(prefix + name, state[prefix + of])

    model.register_state_dict_post_hook(leave_out)
    model.register_load_state_dict_pre_hook(put_in)
