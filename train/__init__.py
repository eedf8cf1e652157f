"""Training: data, the stages, recipes. Import it as ``mobillama_v.train`` (see :mod:`mobillama_v`)."""
