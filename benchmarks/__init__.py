"""Measurements beside other software, from a checkout: ``python -m benchmarks decoder|eval|train``."""
