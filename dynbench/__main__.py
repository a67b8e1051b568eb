"""`python -m dynbench`: the same as the command `dynbench`."""

from dynbench.cli import main

main()
