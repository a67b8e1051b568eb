"""What a check and the processes of its revisions have to agree on: a base may bring a dynbench of its own."""

from __future__ import annotations

PROTOCOL = 4
"""Version of the messages between them, see `revision_worker`; every change of them raises it."""
