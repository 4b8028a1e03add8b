"""Says whether a run is worse than another one."""
