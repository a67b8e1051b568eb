"""What a run directory contains, and reading, writing and exporting it. Imports no torch."""
