"""What executes regions, and the forms a network can be brought into."""

from __future__ import annotations

from dynbench.engines.base import PROTOCOL, CannotPrepare, Engine, prepared
from dynbench.engines.compile import Compile
from dynbench.engines.eager import Eager
from dynbench.engines.forms import FORMS, Form, apply_form
from dynbench.engines.onnxruntime import OnnxRuntime

ENGINES: dict[str, Engine] = {"eager": Eager(), "compile": Compile(), "onnxruntime": OnnxRuntime()}

__all__ = [
    "ENGINES",
    "FORMS",
    "PROTOCOL",
    "CannotPrepare",
    "Compile",
    "Eager",
    "Engine",
    "Form",
    "OnnxRuntime",
    "apply_form",
    "prepared",
]
