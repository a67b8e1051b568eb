"""Makes a dynamic network of one that exists already, by naming its modules: exits, skips, routed experts.

The result is an ordinary model with decision points. It shares its weights with the original, keeps their names in its
state dict, and its static twin answers as the original does. `dynbench.adapt.transformers` does so for language models
of the package transformers.
"""

from dynbench.adapt.exits import confident, exits_at
from dynbench.adapt.experts import route_experts
from dynbench.adapt.skips import skip_blocks

__all__ = ["confident", "exits_at", "route_experts", "skip_blocks"]
