"""Ask, run, write down: from the command line to one JSON record per cell."""
