"""The commands of the command line, a module for each kind: `add(commands)` adds their flags to the parser.

Nothing here imports anything heavy before its command runs.
"""

OK, NOT_AS_SAID, USAGE, FAILED_CELLS, READER_GONE = 0, 1, 2, 3, 141  # exit codes, beside bench.system.interrupt's
