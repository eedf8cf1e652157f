"""Evaluation: benchmarks, runner, report. Import it as ``mobillama_v.eval``."""
