"""What is measured: one meter a file."""
