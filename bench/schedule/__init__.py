"""Says which cell of a run comes when, and what it is likely to take before it runs."""
