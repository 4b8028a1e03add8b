"""What cells are likely to take, in time and memory, before they run."""
