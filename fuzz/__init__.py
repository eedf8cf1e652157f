"""Coverage-guided fuzzing of what takes a stranger's bytes; README.md says how to run it."""
