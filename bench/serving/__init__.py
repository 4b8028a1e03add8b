"""Serves the models of a run by an inference engine: exported, compared with this suite, scored and timed."""
