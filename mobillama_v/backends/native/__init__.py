"""The CPU engine: packed weights and a native library that keeps the shared feed-forward network in the cache.

``library`` finds and calls the C++ library, ``files`` reads and writes packed models, and ``runtime`` runs them: these
need numpy alone. ``pack`` quantizes matrices of torch and ``convert`` whole decoders, and ``native`` answers with them
behind the interface of :class:`mobillama_v.generate.Engine`.
``linear`` runs single layers, and ``sight`` puts them into image towers and projectors.
"""
