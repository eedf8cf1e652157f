"""Evaluation: benchmarks, runner, report. Import it as ``mobillama_v.eval``."""

if __name__ != "mobillama_v.eval":  # the checkout's folder was found, not the installed package
    raise ImportError("eval/ is mobillama_v.eval: pip install -e . and import it by that name")
