"""The CPU engine: packed weights and a native library that keeps the shared feed-forward network in the cache.

Over numpy alone: ``library`` finds and calls the C++ library (``csrc/engine.h`` maps it), ``packed_format`` reads and
writes packed models, ``pack`` makes them of a decoder's tensors, ``runtime`` runs them, ``prefix_cache`` reuses what
prompts have in common, and ``engine`` puts them behind the interface of :class:`mobillama_v.generate.Engine`.

Over torch: ``tiles`` quantizes matrices, ``calibration`` measures their inputs, ``torch_convert`` packs and unpacks
decoders, ``packed_linear`` runs single layers, and ``packed_vision`` puts these into image towers and projectors.
"""
