"""The command line, called in this process."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from dynbench.cli import main

TINY = Path(__file__).parents[1] / "experiment" / "tiny" / "tiny.toml"
QUICK = (
    "--time-limit",
    "0.3",
    "--precision",
    "50",
    "--batch",
    "4",
    "--strategy",
    "compaction",
    "--decisions",
    "learned",
)


def call(*args: object) -> Result:
    """What `dynbench ARGS` does; a bug, unlike a refusal, is raised."""
    return CliRunner().invoke(main, [str(a) for a in args], catch_exceptions=False)
