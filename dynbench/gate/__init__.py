"""The gate for CI: base and head of a change measured against each other in the same job."""
