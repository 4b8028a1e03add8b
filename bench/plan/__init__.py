"""Says what the user asked for, and the cells that follow from it."""
