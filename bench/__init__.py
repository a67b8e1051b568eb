"""What dynbench itself costs, and how right it is: measured as ratios in one run. `python -m bench`."""
