"""What the stored numbers say: statistics, the stopping rule, the gap, verdicts. Imports no torch."""
