"""The types that a network computes in: as it was built, or cast to one that was asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
"""The type of the real and the imaginary part of a complex type."""

_COMPLEX = {real: compound for compound, real in REAL.items()}


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts all floating-point numbers of a model in place, complex ones to the complex type of this precision."""

    def to(t: Tensor) -> Tensor:
        if t.is_complex():
            return t.to(_COMPLEX.get(dtype, t.dtype))
        return t.to(dtype) if t.is_floating_point() else t

    return model._apply(to)


def input_dtype(model: nn.Module) -> torch.dtype:
    """What a model takes where it is given floating-point numbers: the type of its first parameter, or float32."""
    kinds = (REAL.get(p.dtype, p.dtype) for p in model.parameters())
    return next((kind for kind in kinds if kind.is_floating_point), torch.float32)


def dtype_name(model: nn.Module) -> str:
    """The types of a model's parameters, such as 'float32' or 'bfloat16+float32'; 'int8' where layers are quantised."""
    kinds = {REAL.get(p.dtype, p.dtype) for p in model.parameters()}
    names = {str(kind).removeprefix("torch.") for kind in kinds if kind.is_floating_point}
    if any(".quantized." in type(m).__module__ for m in model.modules()):
        names.add("int8")
    return "+".join(sorted(names)) or str(input_dtype(model)).removeprefix("torch.")
