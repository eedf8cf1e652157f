"""Training: data, the stages, recipes. Import it as ``mobillama_v.train`` (see :mod:`mobillama_v`)."""

if __name__ != "mobillama_v.train":  # the checkout's folder was found, not the installed package
    raise ImportError("train/ is mobillama_v.train: pip install -e . and import it by that name")
