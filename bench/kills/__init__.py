"""Commands killed at random moments: what is lost, and what is left behind after the next start.

`python -m bench.kills --out DIR` measures how long each command takes undisturbed, then kills it again and again,
starts it once more as a user would, and looks: is every recorded group still there, with samples that can be read? Is
a process left, a git worktree, a temporary file? Is the history database sound? Each trial has a folder of its own for
temporary files, and a mark in its environment by which its processes are found.

DIR/results.json has every trial, DIR/README.md the table. What is there is not done again; Ctrl-C at any time.
"""
