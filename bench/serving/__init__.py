"""The models of a run as an inference engine serves them: exported, held against this suite, scored and timed."""
