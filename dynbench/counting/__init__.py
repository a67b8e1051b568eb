"""What a model computes: FLOPs as operators are dispatched, and parameters. Only torch is known here."""
