"""The command `dynbench`, also as `python -m dynbench`."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Calls the command; Ctrl-C while its modules are still being read ends it without a traceback."""
    try:
        from dynbench.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
