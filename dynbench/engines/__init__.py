"""What executes regions, and the forms a network can be brought into."""

from __future__ import annotations

from dynbench.engines.compile import Compile
from dynbench.engines.eager import Eager, Engine
from dynbench.engines.forms import FORMS, Form, apply_form

ENGINES: dict[str, Engine] = {"eager": Eager(), "compile": Compile()}

__all__ = ["ENGINES", "FORMS", "Compile", "Eager", "Engine", "Form", "apply_form"]
