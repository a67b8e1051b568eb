"""Counts of a model: FLOPs, bytes and operator calls as operators are dispatched, and parameters."""
